"""Orchestration: Prefect lives here and nowhere else. Telemetry is off before Prefect reads its settings."""

from flows.environment import apply_defaults

apply_defaults()
