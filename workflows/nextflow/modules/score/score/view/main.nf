process SCORE_VIEW {
    tag "${meta.id}"
    label 'process_low'
    secret 'SCORE_TOKEN'

    conda "${moduleDir}/environment.yml"
    container 'score-transfer:0.1.0'

    input:
    tuple val(meta), val(object_id), path(manifest)
    tuple val(regions), path(bed)
    tuple val(meta2), path(fasta), path(fai)

    output:
    tuple val(meta), path("out/*.{sam,bam,cram,vcf,vcf.gz,bcf}"), emit: slices
    tuple val(meta), path("out/*.{bai,csi,crai,tbi}"), emit: index, optional: true
    tuple val(meta), path("*.view.json"), emit: report
    tuple val("${task.process}"), val('score'), eval("score --version | sed -n 's/.*Version: //p'"), topic: versions, emit: versions_score

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${meta.id}"
    def source = manifest ? "--manifest '${manifest}'" : "--object-id '${object_id}'"
    def wanted = bed ? "--bed-query '${bed}'" : [regions].flatten().collect { region -> "--query '${region}'" }.join(' ')
    def reference = fasta ? "--reference-file '${fasta}'" : ''
    """
    score view \\
        ${source} \\
        ${wanted} \\
        ${reference} \\
        --output-dir out \\
        --workflow-exit-codes \\
        --json \\
        ${args} \\
        > '${prefix}.view.json'
    """

    stub:
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir out
    touch 'out/${prefix}.bam' 'out/${prefix}.bam.bai'
    echo '{}' > '${prefix}.view.json'
    """
}
