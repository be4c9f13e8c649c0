"""Where pictures come from: files, folders, patterns, URLs, videos, cameras, and pictures in memory."""
