"""A FastAPI service with a consumer inside: handlers fill what the routes show.

    ASYNCPAR_BOOTSTRAP_SERVERS=localhost:9092 uvicorn examples.fastapi_app:api

Service and consumer share one event loop. The service starts when the consumer is connected, and ends after
what is running has ended and is committed; uvicorn keeps its signals.
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

from asyncpar import App
from asyncpar.status import AppStatus


class Order(BaseModel):
    """One order, as it lies on the topic and as the route returns it."""

    order_id: int
    customer: str
    cents: int = 0


orders: dict[int, Order] = {}

# The routes below stand in for the consumer's own HTTP server.
app = App("orders-service", group="orders-service", http_port=0)
api = FastAPI(title="Orders", lifespan=app.lifespan)


@app.topic("orders")
async def remember(order: Order) -> None:
    """Keep the newest version of each order; versions of one order share their key, so they come in order."""
    orders[order.order_id] = order


@api.get("/orders/{order_id}")
async def show(order_id: int) -> Order:
    """The order as the consumer last saw it."""
    if order_id not in orders:
        raise HTTPException(404, f"order {order_id} is not known (yet)")
    return orders[order_id]


@api.get("/consumer-status")
async def consumer_status() -> AppStatus:
    """Everything the consumer knows about itself: partitions, lag, blocking offsets, handlers."""
    return app.status()


@api.get("/readyz")
async def readyz(response: Response) -> list[str]:
    """For the orchestrator: 503 with the reasons while the consumer cannot do its work."""
    status = app.status()
    if not status.ready:
        response.status_code = 503
    return list(status.not_ready)
