"""`polarcredits serve-webhooks`: the receiver of Polar's deliveries."""

from __future__ import annotations

from typing import Annotated

import typer

from polarcredits.cli import context
from polarcredits.cli.output import counted, emit, hint


def serve_webhooks(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8787,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, on one database.")] = 1,
    allow_triggered: Annotated[bool, typer.Option(help="Take made-up events (sandbox).")] = False,
    trusted_proxies: Annotated[
        str | None,
        typer.Option(
            envvar="FORWARDED_ALLOW_IPS",
            help="Whose X-Forwarded-For and -Proto count: addresses and networks, by commas."
            " Default: this machine's.",
        ),
    ] = None,
) -> None:
    """Receive Polar's webhooks. Example: polarcredits serve-webhooks --port 8787 --workers 2"""
    from polarcredits.server.serve import Serving, serve

    def listening(address: str) -> None:
        if context.options.json:
            emit({"url": address, "workers": workers}, lambda: None)
        else:
            hint(f"Listening on {address} with {counted(workers, 'worker')}; POST {address}/webhooks/polar")

    how = Serving(
        host=host,
        port=port,
        workers=workers,
        allow_triggered=allow_triggered,
        trusted_proxies=trusted_proxies,
    )
    code = serve(context.settings(), how, listening=listening)
    if code:
        raise typer.Exit(code)
