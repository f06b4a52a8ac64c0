"""Check an RO-Crate with the format's own validator, without a network.

python validate.py CRATE CONTEXT CACHE

The validator looks up the JSON-LD context of RO-Crate 1.1 on the web. It finds it in its own cache:
CONTEXT is the copy that the package rocrate carried at that version.
"""

import io
import sys
from pathlib import Path

import requests
import requests_cache
from requests.adapters import BaseAdapter
from rocrate_validator import services
from rocrate_validator.models import Severity, ValidationSettings
from urllib3 import HTTPResponse

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


class Carried(BaseAdapter):
    """Answers every request with one file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response.headers["Content-Type"] = "application/ld+json"
        body = io.BytesIO(self.path.read_bytes())
        response.raw = HTTPResponse(body, response.headers, 200, preload_content=False)
        return response

    def close(self) -> None:
        pass


def main(crate: str, context: Path, cache: Path) -> int:
    """Print what the validator finds; return 1 if that is anything."""
    session = requests_cache.CachedSession(str(cache), backend="sqlite", expire_after=-1)
    session.mount("https://", Carried(context))
    assert session.get(CONTEXT).ok
    result = services.validate(
        ValidationSettings(
            rocrate_uri=crate,
            profile_identifier="provenance-run-crate-0.5",
            requirement_severity=Severity.REQUIRED,
            offline=True,
            cache_path=cache,
        )
    )
    for issue in result.get_issues():
        print(issue.check.identifier, issue.message)
    print(f"{len(result.executed_checks)} checks, {len(result.get_issues())} issues")
    return int(result.has_issues())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
