process SONG_GET {
    tag "${analysis_id}"
    label 'process_single'
    secret 'SCORE_TOKEN'

    conda "${moduleDir}/environment.yml"
    container 'score-transfer:0.1.0'

    input:
    tuple val(study_id), val(analysis_id)

    output:
    tuple val(study_id), val(analysis_id), path("*.analysis.json"), emit: analysis_json
    path "*.analysis.json", emit: json
    tuple val("${task.process}"), val('score'), eval("score --version | sed -n 's/.*Version: //p'"), topic: versions, emit: versions_score

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${analysis_id}"
    """
    score analysis \\
        --study-id '${study_id}' \\
        --analysis-id '${analysis_id}' \\
        --output '${prefix}.analysis.json' \\
        --workflow-exit-codes \\
        ${args}
    """

    stub:
    def prefix = task.ext.prefix ?: "${analysis_id}"
    """
    echo '{"analysisId": "${analysis_id}", "studyId": "${study_id}", "files": []}' > '${prefix}.analysis.json'
    """
}
