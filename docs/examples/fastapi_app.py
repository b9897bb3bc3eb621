"""An API that charges for each call: one ledger for the whole application, awaited.

Run it: uvicorn fastapi_app:app --app-dir docs/examples
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse

from polarcredits import InsufficientCredits, PolarCreditsError, UnknownUser, open_ledger_async


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the ledger once; at the end, what was accepted is answered before it is closed."""
    async with open_ledger_async() as ledger:
        app.state.ledger = ledger
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(PolarCreditsError)
async def refused(_: Request, error: PolarCreditsError) -> JSONResponse:
    """Answer what the ledger refused with its code and fields."""
    status = {InsufficientCredits: 402, UnknownUser: 404}.get(
        type(error), 503 if error.exit_code == 8 else 400
    )
    return JSONResponse({"error": error.code, "message": error.message, **error.fields}, status_code=status)


@app.post("/render/{user}")
async def render(
    request: Request, user: str, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, object]:
    """Charge first; whoever sends the same Idempotency-Key again is charged once."""
    receipt = await request.app.state.ledger.deduct(user, operation="render", idempotency_key=idempotency_key)
    return {
        "transaction": receipt.transaction.id,
        "available": receipt.available,
        "replayed": receipt.replayed,
    }


@app.post("/generate/{user}")
async def generate(request: Request, user: str, tokens: Annotated[int, Query(ge=0)]) -> dict[str, object]:
    """Hold the most that it may cost, work, and pay for what was used; a failure releases the hold."""
    ledger = request.app.state.ledger
    used = min(tokens, 50)
    async with ledger.hold(user, 50) as hold:
        if used:
            await hold.capture(used)
    return {"used": used, "available": (await ledger.balance(user)).available}
