#!/usr/bin/env bash
# What versions can break, under the lowest and the newest ones that resolve: `make matrix`, or scripts/matrix.sh NAME.
#
# Each environment lies over .venv and holds only what differs from it, so it takes seconds, not gigabytes. torch stays
# the one of .venv: other builds are several gigabytes each (MATRIX_TORCH=2.15.0 asks for one on top).
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
wrapper="tests/model/test_loading.py tests/model/test_wrapper.py tests/model/test_packing.py"
out=build/reliability
mkdir -p "$out"

versions() { # of a Python
  "$1" -c 'from importlib.metadata import version as v
print(", ".join(f"{p} {v(p)}" for p in ("transformer-lens", "transformers", "torch")))'
}

run() { # name, tests, then what to install
  local name=$1 tests=$2 folder=.venv-matrix/$1 log=$out/matrix-$1.log code versions
  shift 2
  [ -x "$folder/bin/python" ] || .venv/bin/python -m venv "$folder" || return 1
  echo "import site; site.addsitedir('$base')" > "$(echo "$folder"/lib/python3*/site-packages)/base.pth"
  if ! "$folder/bin/python" -m pip install --quiet "$@" ${MATRIX_TORCH:+"torch==$MATRIX_TORCH"} > "$log" 2>&1; then
    echo "$name: does not resolve: $(grep -m1 ERROR "$log")"
    return 1
  fi
  versions=$(versions "$folder/bin/python")
  if [ "$versions" = "$(versions .venv/bin/python)" ]; then
    echo "$name: $versions: those of .venv, which \`make test\` tests"
    return 0
  fi
  "$folder/bin/python" -m pytest -q -p no:cacheprovider -n "${WORKERS:-2}" --dist loadfile $tests > "$log" 2>&1
  code=$?
  echo "$name: $versions: $(tail -1 "$log")"
  [ $code = 0 ] || grep -E "^(FAILED|ERROR)" "$log" | head -20
  "$folder/bin/python" - "$versions" "$(tail -1 "$log")" $code <<'PY'
import sys
from tests.reliability.outcomes import record
versions, last, code = sys.argv[1:]
record("versions", versions, 1, last.strip("= ") + ("" if code == "0" else " (not supported)"))
PY
  return $code
}

failed=0
for name in "${@:-lowest bridge newest}"; do
  for one in $name; do
    case $one in
      lowest) run lowest "$wrapper tests/legacy" "transformer-lens==3.9.0" "transformers==5.9.0" ;;
      bridge) run bridge "$wrapper" "transformer-lens==4.0.0" "transformers==5.9.0" ;;
      newest) run newest "$wrapper" --upgrade "transformer-lens<5" transformers ;;
      *) echo "no such environment: $one"; false ;;
    esac || failed=1
  done
done
exit $failed
