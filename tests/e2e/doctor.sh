# The doctor on a bare home, with and without a model.
"$CRAYON" doctor | grep -oE '^(crayon|cores|kernel levels|pcre2|offline mode|default model|it opens|models folder|verdict) ' | tr -d ' '
"$CRAYON" doctor --json > json; echo $?
grep -E '"(it_opens|verdict)"' json
CRAYON_MODEL=nothing "$CRAYON" doctor | grep -E '^verdict'
CRAYON_MODEL=nothing "$CRAYON" doctor > /dev/null; echo $?
env -u HOME "$CRAYON" doctor | grep -c 'none: HOME is not set'
