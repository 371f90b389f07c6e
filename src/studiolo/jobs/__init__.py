"""Durable background work: batches and trainings; and drawing for many."""
