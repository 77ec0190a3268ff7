"""Stage of a study: the certificate."""

from typing import Any

from ..engines.stage import Job, Stage
from .records import Certificate
from .section import certificate_section


def _certificate(job: Job, selection: Any) -> Certificate:
    from .identities import certify

    with job.progress("certify", 0):
        return certify(job.model, direction=selection.chosen)


CERTIFICATE = Stage(
    "certificate",
    {"certificate": Certificate},
    _certificate,
    "the identities, measured on this model",
    optional=True,
    since=2,
    section=lambda study: study.certificate and certificate_section(study.certificate),
)
