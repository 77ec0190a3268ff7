#!/usr/bin/env bash
# Known vulnerabilities and licences of everything in .venv: `make audit`. Tools live in an environment of their own.
#
# An advisory that is published tonight must not turn tomorrow's unrelated change red, and CI may have no network: both
# are reported and pass. What we looked into and accept is in scripts/audit_accepted.txt (ID, then why). A licence that
# is not in scripts/licences_accepted.txt fails: it changes only when a dependency does.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
tools=.venv-audit out=build/audit
mkdir -p "$out"
[ -x $tools/bin/python ] || .venv/bin/python -m venv $tools
if ! $tools/bin/python -m pip install --quiet "pip-audit>=2.7" "pip-licenses>=5" 2> "$out/audit.log"; then
  echo "audit: its tools can't be installed here: $(tail -1 "$out/audit.log")"
  exit 0
fi

accepted=$(sed 's/#.*//; s/ .*//; /^$/d; s/^/--ignore-vuln /' scripts/audit_accepted.txt | tr '\n' ' ')
# shellcheck disable=SC2086
PIPAPI_PYTHON_LOCATION=$PWD/.venv/bin/python $tools/bin/pip-audit --local --skip-editable --progress-spinner off \
  --timeout 5 --format json $accepted > "$out/audit.json" 2> "$out/audit.log" || true
$tools/bin/pip-licenses --python=.venv/bin/python --from=mixed --format=markdown --with-urls --order=license \
  --ignore-packages refusal-lens > "$out/licences.md"
$tools/bin/pip-licenses --python=.venv/bin/python --from=mixed --format=json --ignore-packages refusal-lens \
  > "$out/licences.json"
.venv/bin/python - "$out" <<'PY'
import json, re, sys
from pathlib import Path
from tests.reliability.outcomes import record

out = Path(sys.argv[1])
try:
    found = json.loads((out / "audit.json").read_text())["dependencies"]
except ValueError:
    found = []
asked = [d for d in found if "skip_reason" not in d]
bad = [f"{d['name']} {d['version']}: {', '.join(v['id'] for v in d['vulns'])}" for d in asked if d["vulns"]]
if not asked:
    print("audit: the advisories can't be reached from here, nothing was audited")
else:
    print(f"audit: {len(asked)} of {len(found)} packages looked up, {len(bad)} with a known vulnerability (a report only)")
    print("\n".join(bad))
    record("supply chain", "known vulnerabilities (pip-audit)", len(asked), f"{len(bad)} packages: {'; '.join(bad) or 'none'}")

lines = [line.split("#")[0].strip() for line in Path("scripts/licences_accepted.txt").read_text().splitlines()]
words = [line for line in lines if line and not line.endswith(" UNKNOWN")]
packages = json.loads((out / "licences.json").read_text())
odd = []
for p in packages:
    text = p["License"].strip().splitlines()[0]
    parts = [part.split(" AND ") for part in re.split(r"\s+OR\s+", text.replace(";", " AND "))]
    holds = any(all(any(word in licence for word in words) for licence in part) for part in parts)  # OR: we choose
    if not holds and f"{p['Name']} {text}" not in lines:
        odd.append(f"{p['Name']} {p['Version']}: {text}")
print(f"licences: {len(packages)} packages, {len(odd)} not accepted in scripts/licences_accepted.txt")
print("\n".join(odd))
record("supply chain", "licences of everything installed", len(packages), f"{len(odd)} outside the accepted list")
sys.exit(bool(odd))
PY
