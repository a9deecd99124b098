# From files to a published analysis: ids, then bytes, then the seal. Each step waits for the receipt of the one before.
rule song_register:
    input:
        "data/{sample}.bam",
        "data/{sample}.bam.bai",
    output:
        manifest="published/{sample}.manifest.txt",
        receipt="published/{sample}.registered.json",
    log:
        "logs/song/register/{sample}.log",
    params:
        study_id=lambda wildcards: config["study_id"],
    wrapper:
        "master/song/register"


rule score_upload:
    input:
        "data/{sample}.bam",
        "data/{sample}.bam.bai",
        manifest="published/{sample}.manifest.txt",
    output:
        "published/{sample}.uploaded.json",
    log:
        "logs/score/upload/{sample}.log",
    threads: 4
    wrapper:
        "master/score/upload"


rule song_publish:
    input:
        "published/{sample}.uploaded.json",
        analysis_id="published/{sample}.registered.json",
    output:
        "published/{sample}.published.json",
    log:
        "logs/song/publish/{sample}.log",
    params:
        study_id=lambda wildcards: config["study_id"],
    wrapper:
        "master/song/publish"
