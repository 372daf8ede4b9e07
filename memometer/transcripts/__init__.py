"""Transcripts of conversations for daily use: JSON, WhatsApp and Slack exports, and plain text."""
