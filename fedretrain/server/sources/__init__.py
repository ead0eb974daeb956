"""Telemetry from brokers, beside the device API: MQTT and Kafka."""
