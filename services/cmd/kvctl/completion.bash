# Completion of kvctl for bash. kvctl itself says what fits; here is what bash wants to have done with it.
_kvctl() {
  local line=${COMP_LINE:0:COMP_POINT} word before candidate directive=
  word=${line##*[[:space:]]}
  # bash completes what follows the last : or = of a word alone.
  before=${word%"${word##*[:=]}"}
  COMPREPLY=()
  while IFS= read -r candidate; do
    case $candidate in
      :*) directive=$candidate ;;
      *)
        candidate=${candidate%%$'\t'*}
        printf -v candidate %q "${candidate#"$before"}"
        COMPREPLY+=("$candidate")
        ;;
    esac
  done < <("${COMP_WORDS[0]}" __complete --line "$line" 2>/dev/null)
  case $directive in
    :nospace) compopt -o nospace ;;
    :files)
      local at=${word#"$before"}
      local front=
      [[ $at == @* ]] && front=@
      compopt -o filenames 2>/dev/null
      while IFS= read -r candidate; do COMPREPLY+=("$front$candidate"); done < <(compgen -f -- "${at#@}")
      ;;
  esac
}
complete -F _kvctl kvctl
