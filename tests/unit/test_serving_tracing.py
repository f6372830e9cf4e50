"""Traces: spans reach a collector, under the caller's, and their context is for the calls within."""

from tests.trace_collector import running_collector

from supertiny.serving.tracing import NoTracer, OtelTracer, tracer_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_span_goes_to_the_collector_under_the_callers_and_its_context_goes_on() -> None:
    with running_collector() as collector:
        span = OtelTracer(collector.url).start("generate auto", {"traceparent": f"00-{TRACE}-{PARENT}-01"})
        assert span.traceparent is not None
        span.set("supertiny.arm", "student")
        span.end()
        assert collector.received.wait(60)
    _, trace, own, _ = span.traceparent.split("-")
    (body,) = collector.bodies
    assert trace == TRACE
    assert own != PARENT
    assert all(bytes.fromhex(each) in body for each in (TRACE, PARENT, own))
    assert b"student" in body


def test_without_an_endpoint_nothing_is_traced() -> None:
    tracer = tracer_of(None)
    assert isinstance(tracer, NoTracer)
    assert tracer.start("generate auto", {"traceparent": f"00-{TRACE}-{PARENT}-01"}).traceparent is None
