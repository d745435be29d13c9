"""Fully self-supervised semantic segmentation (FS^4) as a pipeline: from a folder of images to classes.

prepare       decodes and packs each image once; stores label maps, if any, separately for evaluation
pretrain      trains a self-supervised backbone (MoCo v2, SwAV, DenseCL, SlotCon) or loads a checkpoint
embed         computes one feature for each of the six pyramid views of every image
label         assigns each view a pseudo-label and a score: the nearest cluster center and its similarity
select_views  keeps the views with the highest scores to guide the training
train         alternates between clustering pixels and training the network on the assignments
cluster       clusters the trained network's pixel features once more; these clusters are the classes
predict       scores every pixel of the validation images for every cluster
refine        aligns the borders of the prediction with image edges by a dense CRF
evaluate      matches clusters to annotated classes, if any, and scores them
report        writes one HTML page with all results

Shapes: N images (or items) in a batch, V views, C channels, H rows, W columns, P = H * W pixels,
D features, K clusters, Q queue length, S working size, T stored size of training images.
"""
