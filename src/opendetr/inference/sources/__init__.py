"""Image sources: files, folders, patterns, URLs, videos, cameras and images in memory."""
