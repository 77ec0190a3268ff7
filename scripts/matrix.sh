#!/usr/bin/env bash
# A quick set of tests under the lowest and the newest versions that resolve: `make matrix`, or scripts/matrix.sh NAME.
#
# Each environment lies over .venv and holds only what differs from it, so it takes seconds, not gigabytes. torch stays
# the one of .venv: other builds are several gigabytes each (MATRIX_TORCH=2.15.0 asks for one on top).
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
tests="tests/unit/test_records.py tests/model/test_loading.py tests/model/test_wrapper.py tests/model/test_packing.py tests/reliability/test_schema.py tests/legacy"
out=build/reliability
mkdir -p "$out"

run() { # name, then what to install
  local name=$1 folder=.venv-matrix/$1 log=$out/matrix-$1.log
  shift
  [ -x "$folder/bin/python" ] || .venv/bin/python -m venv "$folder" || return 1
  echo "import site; site.addsitedir('$base')" > "$(echo "$folder"/lib/python3*/site-packages)/base.pth"
  if ! "$folder/bin/python" -m pip install --quiet "$@" ${MATRIX_TORCH:+"torch==$MATRIX_TORCH"} > "$log" 2>&1; then
    echo "$name: does not resolve: $(grep -m1 ERROR "$log")"
    return 1
  fi
  "$folder/bin/python" -m pytest -q -p no:cacheprovider -n "${WORKERS:-2}" --dist loadfile $tests > "$log" 2>&1
  local code=$? versions
  versions=$("$folder/bin/python" - <<'PY'
from importlib.metadata import version
print(", ".join(f"{p} {version(p)}" for p in ("transformer-lens", "transformers", "torch")))
PY
  )
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
      lowest) run lowest "transformer-lens==3.9.0" "transformers==5.9.0" ;;
      bridge) run bridge "transformer-lens==4.0.0" "transformers==5.9.0" ;;
      newest) run newest --upgrade "transformer-lens<5" transformers ;;
      *) echo "no such environment: $one"; false ;;
    esac || failed=1
  done
done
exit $failed
