process SCORE_DOWNLOAD {
    tag "${analysis_id}"
    label 'process_low'
    secret 'SCORE_TOKEN'

    conda "${moduleDir}/environment.yml"
    container 'score-transfer:0.1.0'

    input:
    tuple val(study_id), val(analysis_id), path(analysis)

    output:
    path analysis, emit: analysis_json
    path "out/*", emit: files
    tuple path(analysis), path("out/*"), emit: analysis_files
    path "*.download.json", emit: report
    tuple val("${task.process}"), val('score'), eval("score --version | sed -n 's/.*Version: //p'"), topic: versions, emit: versions_score

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${analysis_id}"
    """
    score download \\
        --study-id '${study_id}' \\
        --analysis-id '${analysis_id}' \\
        --output-dir out \\
        --workflow-exit-codes \\
        --json \\
        ${args} \\
        > '${prefix}.download.json'
    """

    stub:
    def prefix = task.ext.prefix ?: "${analysis_id}"
    """
    mkdir out
    touch out/stub.bam out/stub.bam.bai
    echo '{}' > '${prefix}.download.json'
    """
}
