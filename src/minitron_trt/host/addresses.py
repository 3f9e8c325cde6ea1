"""Addresses of machines."""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """Say whether a host, an address or a name, is one that only this machine reaches."""
    # Loaded only here: a client is imported in less time than this.
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Names below localhost are loopback, too, by RFC 6761.
        return host == "localhost" or host.endswith(".localhost")
