"""Durable background work: batches, trainings, pictures in bulk."""
