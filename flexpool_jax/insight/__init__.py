"""What a trained network has learned: `probe` changes its pool and its images and measures both."""
