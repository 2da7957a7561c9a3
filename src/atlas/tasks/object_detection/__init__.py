"""Object detection: one detector, torchvision's Faster or Mask R-CNN, on every backbone.

A method gives the task a :class:`~atlas.tasks.object_detection.backbones.Backbone`: a pyramid of feature maps. The task holds the
data, the detector's heads, the loop, and the measurement, which is pycocotools'.
"""
