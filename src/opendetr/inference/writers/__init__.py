"""Writers of detections and panoptic maps: images, videos, crops, COCO JSON, CSV and YOLO labels.

Their memory use does not grow with the number of images.
"""
