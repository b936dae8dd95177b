"""Images and labels: where they come from and how they become batches."""
