"""What is written of detections and panoptic maps: pictures, videos, crops, COCO JSON, CSV and YOLO labels; memory
stays flat.
"""
