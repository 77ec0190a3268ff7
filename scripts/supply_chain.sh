#!/usr/bin/env bash
# Known vulnerabilities and licences of everything in .venv: `make audit`. Tools live in an environment of their own.
#
# An advisory that is published tonight must not turn tomorrow's unrelated change red, and CI may have no network: both
# are reported and pass. What we looked into and accept is in scripts/audit_accepted.txt (ID, then why). A licence that
# is not in scripts/licences_accepted.txt fails: it changes only when a dependency does.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
tools=.venv-audit out=build/reliability
mkdir -p "$out"
[ -x $tools/bin/python ] || .venv/bin/python -m venv $tools
if ! $tools/bin/python -m pip install --quiet "pip-audit>=2.7" "pip-licenses>=5" 2> "$out/audit.log"; then
  echo "audit: its tools can't be installed here: $(tail -1 "$out/audit.log")"
  exit 0
fi

accepted=$(sed 's/#.*//; s/ .*//; /^$/d; s/^/--ignore-vuln /' scripts/audit_accepted.txt | tr '\n' ' ')
# shellcheck disable=SC2086
if PIPAPI_PYTHON_LOCATION=$PWD/.venv/bin/python $tools/bin/pip-audit --local --skip-editable --progress-spinner off \
  $accepted > "$out/audit.txt" 2> "$out/audit.log"; then
  echo "audit: $(head -1 "$out/audit.log")"
elif grep -q "known vulnerabilit" "$out/audit.log"; then
  echo "audit: $(grep -m1 'known vulnerabilit' "$out/audit.log") (a report, not a failure):"
  cat "$out/audit.txt"
else
  echo "audit: the advisories can't be reached: $(tail -1 "$out/audit.log" | cut -c1-200)"
fi

$tools/bin/pip-licenses --python=.venv/bin/python --from=mixed --format=markdown --with-urls --order=license \
  --ignore-packages refusal-lens > "$out/licences.md"
$tools/bin/pip-licenses --python=.venv/bin/python --from=mixed --format=json --ignore-packages refusal-lens \
  > "$out/licences.json"
.venv/bin/python - "$out/licences.json" <<'PY'
import json, sys
from pathlib import Path

accepted = {line.split("#")[0].strip() for line in Path("scripts/licences_accepted.txt").read_text().splitlines()}
packages = json.loads(Path(sys.argv[1]).read_text())
odd = [f"{p['Name']} {p['Version']}: {p['License']}" for p in packages if p["License"] not in accepted]
print(f"licences: {len(packages)} packages, {len({p['License'] for p in packages})} licences, {len(odd)} not accepted yet")
print("\n".join(odd))
from tests.reliability.outcomes import record
record("supply chain", "licences of everything installed", len(packages), f"{len(odd)} outside the accepted list")
sys.exit(bool(odd))
PY
