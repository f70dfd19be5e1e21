"""`t2i evaluate`: images, their features, and numbers that others can compute again.

    OUT/plan.json             what the images are made from and how; a changed plan is refused
    OUT/images/00000/         a shard of generated images, PNG; manifest.jsonl has their SHA-256
    OUT/features/             features of the generated images and of the reference, per shard
    OUT/results.json          the metrics, and all that is needed to compute them again
    OUT/values.json           one value per image, of the metrics that have such
    OUT/marks.json            a digest of the caption beside each image, or of each original that a
                              tokenizer gives back, by which two results are paired
    OUT/times.json            seconds that the last command took; the only file that is not the same
                              when it is made again
    OUT/results-1/            the files of results that another command has replaced since, of other
                              metrics or another reference
    OUT/report.html           the numbers and images in one page

Every step passes over what is there whole, so that a command that was killed goes on where it was,
and ends in the same bytes.
"""
