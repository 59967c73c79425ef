"""The network of the rig's cloud: one bridge in a network namespace without a way out, each instance a namespace on it.

Nothing can leave: the namespace that everything runs in has no interface but its own bridge and loopback. What a cloud
answers to its machines (the API, the metadata service) and what SkyPilot asks of the Internet before anything else
(sky/backends/backend_utils.py, _TEST_IP_LIST) are addresses of this namespace.
"""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import subprocess
import threading
from pathlib import Path

BRIDGE = "cloud0"
GATEWAY = "172.31.255.254"
"""In moto's default network, 172.31.0.0/16, past the subnets that it gives addresses from."""
INTERNET = ("1.1.1.1", "8.8.8.8")
VOID = "void"
"""Takes what is sent to machines that are gone, and is silent about it."""
METADATA = "169.254.169.254"


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def build() -> None:
    """The bridge and the addresses, in the namespace of the caller."""
    ip("link set lo up")
    for address in (*INTERNET, METADATA):
        ip(f"addr add {address}/32 dev lo")
    ip(f"link add {BRIDGE} type bridge")
    ip(f"addr add {GATEWAY}/16 dev {BRIDGE}")
    ip(f"link set {BRIDGE} up")
    # A bridge without ports that asks nobody for an address: not every kernel has the dummy interface.
    ip(f"link add {VOID} type bridge")
    ip(f"link set {VOID} arp off up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for name in ("all", BRIDGE):
        # Two public addresses on one bridge: they are to go on through the gateway, as in a cloud.
        Path(f"/proc/sys/net/ipv4/conf/{name}/send_redirects").write_text("0")


def plug_in(namespace: str, private: str, public: str | None) -> None:
    """A new namespace with an interface on the bridge."""
    for address in (private, public):
        subprocess.run(["ip", "route", "del", f"{address}/32", "dev", VOID], check=False, capture_output=True)
    ip(f"netns add {namespace}")
    ip(f"link add {namespace} type veth peer name eth0 netns {namespace}")
    ip(f"link set {namespace} master {BRIDGE} up")
    ip(f"-n {namespace} link set lo up")
    # Each region has the same private addresses: machines meet at their public ones only, as across a cloud's regions.
    ip(f"-n {namespace} addr add {private}/{32 if public else 16} dev eth0")
    ip(f"-n {namespace} link set eth0 up")
    seen_as = f"src {public}" if public else ""
    if public:
        ip(f"-n {namespace} addr add {public}/32 dev eth0")
        ip(f"-n {namespace} route add {GATEWAY}/32 dev eth0 {seen_as}")
        ip(f"route replace {public}/32 dev {BRIDGE}")
    ip(f"-n {namespace} route add default via {GATEWAY} {seen_as}")


def unplug(namespace: str, private: str, public: str | None) -> None:
    """As a machine that is gone: what is sent to its addresses is lost without an answer."""
    ip(f"netns del {namespace}")
    for address in filter(None, (private, public)):
        ip(f"route replace {address}/32 dev {VOID}")


class Internet:
    """Answers SkyPilot's question whether there is a network, with a certificate of the rig's own authority."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder / "authority.pem"
        self._key = folder / "authority.key"
        self._servers: list[http.server.ThreadingHTTPServer] = []

    def certify(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the rig's Internet")])
        now = datetime.datetime.now(datetime.UTC)
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(each)) for each in INTERNET])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(addresses, critical=False)
            .sign(key, hashes.SHA256())
        )
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        self._key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))

    def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.bundle, self._key)
        for address in INTERNET:
            server = http.server.ThreadingHTTPServer((address, 443), _Nothing)
            server.daemon_threads = True
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._servers.append(server)

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Nothing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass
