"""Fully self-supervised semantic segmentation (FS^4) as a pipeline: a folder of images in, classes out.

prepare       images are decoded once and packed; label maps, if any, go where only the scoring looks
pretrain      a backbone learns to tell images apart (MoCo v2), or comes from a published checkpoint
embed         it gives one feature to each of the six pyramid views of every image
label         centres of these features, or of the pretrained model, give each view a pseudo-label and a score
select_views  the views with the best scores are kept to guide the training
train         pixels are clustered and the network trained towards the clusters, in turn
cluster       the trained network's pixel features are clustered once more: the classes
predict       every pixel of the validation images gets a score for every class
refine        a dense CRF moves the borders to those of the image
evaluate      clusters are matched to true classes, where there are any, and scored
report        one page to look at

Shapes: N images (or items) in a batch, V views, C channels, H rows, W columns, P = H * W pixels,
D features, K clusters, Q length of the queue, S the working size, T the stored size of training images.
"""
