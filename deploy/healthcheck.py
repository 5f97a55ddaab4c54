"""Whether the server beside this program answers /livez: exit status 0, or else 1 and a line that says why not.

It takes the settings that the server took. Whom the certificate is for, and who may come with which, is not its matter.
"""

from __future__ import annotations

import http.client
import ssl
import sys

from edgeprofile import settings
from edgeprofile.errors import EdgeprofileError

ANSWER_SECONDS_MAX = 3.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def ask(server: settings.Server) -> str | None:
    """What is wrong, if anything is."""
    host = ANYWHERE.get(server.host, server.host)
    connection = http.client.HTTPConnection(host, server.port, timeout=ANSWER_SECONDS_MAX)
    if server.tls_certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, server.port, timeout=ANSWER_SECONDS_MAX, context=context)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except ssl.SSLError as error:
        # A server that wants to see a certificate is there to want it.
        return None if server.tls_client_ca is not None else str(error)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if status == 200 else f"status {status}"


def main() -> int:
    try:
        fault = ask(settings.load().server)
    except EdgeprofileError as error:
        fault = str(error)
    if fault is not None:
        print(fault)
    return 0 if fault is None else 1


if __name__ == "__main__":
    sys.exit(main())
