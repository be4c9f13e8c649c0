"""What is written of detections and panoptic maps: images, videos, crops, COCO JSON, CSV and YOLO labels; memory
stays flat.
"""
