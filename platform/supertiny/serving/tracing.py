"""Traces: a span a request, its context handed on to the pipeline and to vLLM as `traceparent`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from supertiny.errors import ConfigError


class Tracer(Protocol):
    """Opens spans."""

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """A span under the one that the request's `traceparent` header names, if it has one."""


class Span:
    """A span that is not recorded; also what a recorded one looks like."""

    traceparent: str | None = None
    """For the calls made within it."""

    def set(self, name: str, value: str | int | float) -> None:
        """Note a fact."""

    def end(self) -> None:
        """It is over."""


class NoTracer:
    """Records nothing."""

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """A span that is not recorded."""
        return Span()


class _OtelSpan(Span):
    def __init__(self, span: Any, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def set(self, name: str, value: str | int | float) -> None:
        self._span.set_attribute(name, value)

    def end(self) -> None:
        self._span.end()


class OtelTracer:
    """Sends spans to an OpenTelemetry collector, in the background.

    Args:
        endpoint: of the collector's OTLP over HTTP, without `/v1/traces`.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(f"trace_endpoint needs OpenTelemetry ({error}); install supertiny[tracing]") from None
        provider = TracerProvider(resource=Resource({"service.name": "supertiny-router"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces"), schedule_delay_millis=1000))
        self._tracer = provider.get_tracer(__name__)

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """A span under the one that the request's `traceparent` header names, if it has one."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        span = self._tracer.start_span(name, context=propagator.extract(dict(headers)), kind=trace.SpanKind.SERVER)
        carrier: dict[str, str] = {}
        propagator.inject(carrier, trace.set_span_in_context(span))
        return _OtelSpan(span, carrier["traceparent"])


def tracer_of(endpoint: str | None) -> Tracer:
    """What an endpoint asks for."""
    return OtelTracer(endpoint.rstrip("/")) if endpoint else NoTracer()
