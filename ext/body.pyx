"""The body of a request, read as it comes in, without an event loop.

Granian's `receive` gives a future. To wait for it in the event loop wakes that loop's thread once for each piece of the
body, which costs more than most answers; a `Reading` is called where the piece arrives.
"""

cimport cython
from libc.stdint cimport uint64_t

from edgeprofile._exchange cimport Exchange
from edgeprofile._metrics cimport clock_ns

from edgeprofile.errors import BodyTooLarge, MalformedBody


@cython.final
@cython.auto_pickle(False)
cdef class Body:
    """What is there of a body. `announced` is its Content-Length, 0 where that is unknown."""

    def __cinit__(self, uint64_t announced, uint64_t bytes_max):
        self.announced = announced
        self.bytes_max = bytes_max
        self.pieces = []

    cdef bint take(self, dict message) except -1:
        """Takes an ASGI message; True once the body is whole. Raises BodyTooLarge, MalformedBody."""
        cdef bytes piece
        if message["type"] == "http.disconnect":
            # Also where the connection stands, but its chunks are no chunks.
            raise MalformedBody("The body ended early, or its encoding is broken.")
        piece = message.get("body", b"")
        self.size += len(piece)
        if self.size > self.bytes_max:
            raise BodyTooLarge(self.bytes_max)
        self.pieces.append(piece)
        # Granian says that more is to come until it has seen that there is not; the announced length is known before.
        return not message.get("more_body") or 0 < self.announced <= self.size

    cdef bytes whole(self):
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


@cython.final
@cython.auto_pickle(False)
cdef class Reading:
    """Reads a body without an event loop, then calls `then(self, body or exception)`, once."""

    def __cinit__(self, receive, uint64_t announced, uint64_t bytes_max, then, Exchange exchange):
        self.receive = receive
        self.then = then
        self.exchange = exchange
        self.body = Body(announced, bytes_max)
        self.started_ns = clock_ns()

    cpdef go_on(self):
        """Asks for the next piece, with which this object is called. Never raises: a fault is an outcome too."""
        try:
            future = self.receive()
            if not hasattr(future, "add_done_callback"):  # as where the caller has gone already
                raise MalformedBody("The body ended early.")
            if not future.done():
                future.add_done_callback(self)
                return
        except Exception as error:
            self.end(error)
            return
        self(future)

    def __call__(self, future):
        if self.then is None:
            return
        try:
            if not self.body.take(future.result()):
                self.go_on()
                return
            outcome = self.body.whole()
        except Exception as error:
            outcome = error
        self.end(outcome)

    cpdef expire(self):
        """Ends it for having taken too long."""
        self.end(too_slow())

    cdef int end(self, outcome) except -1:
        then, self.then = self.then, None
        if then is not None:
            then(self, outcome)
        return 0


cdef object too_slow():
    """The error of a body that is not whole in time."""
    return MalformedBody(f"The body was not whole after {BODY_SECONDS_MAX:g} s.")
