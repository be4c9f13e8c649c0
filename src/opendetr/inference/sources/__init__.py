"""Where images come from: files, folders, patterns, URLs, videos, cameras, and images in memory."""
