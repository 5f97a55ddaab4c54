"""The lookup as a team would write it in Python: FastAPI, redis-py with its pool, and a check of the key's hash."""

from __future__ import annotations

import hashlib
import os
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException, Response
from redis.asyncio import Redis

KEY_HASHES = frozenset({os.environ["PEER_KEY_HASH"]})

app = FastAPI(docs_url=None, openapi_url=None)
redis = Redis.from_url(os.environ["PEER_REDIS"])


async def profile(profile_id: str, authorization: Annotated[str, Header()] = "") -> Response:
    """The profile's JSON as Redis has it."""
    if hashlib.sha256(authorization.encode()).hexdigest() not in KEY_HASHES:
        raise HTTPException(401)
    body = await redis.get(profile_id)
    if body is None:
        raise HTTPException(404)
    return Response(body, media_type="application/json")


# A decorator would be one that mypy knows nothing of where FastAPI is not installed.
app.add_api_route("/v1/profiles/id/{profile_id}", profile)
