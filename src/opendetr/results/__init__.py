"""What is written of detections: pictures, videos, crops, COCO JSON, CSV and YOLO labels; memory stays flat."""
