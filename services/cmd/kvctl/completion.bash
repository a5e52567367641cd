# Completion of kvctl for bash. kvctl itself says what fits; here is what bash wants to have done with it.
_kvctl() {
  local line=${COMP_LINE:0:COMP_POINT} candidate directive= i c
  # The last word as it is meant, and what of it stands before what bash completes: that behind an open quote alone, else that behind the last : or =.
  local quote= value= broke= before=
  COMPREPLY=()
  for ((i = 0; i < ${#line}; i++)); do
    c=${line:i:1}
    if [[ $c == \\ && $quote != \' ]]; then
      i=$((i + 1)) value+=${line:i:1}
    elif [[ $quote ]]; then
      if [[ $c == "$quote" ]]; then quote=; else value+=$c; fi
    elif [[ $c == [\'\"] ]]; then
      if [[ $value == *\$ ]]; then return; fi # $'...' is another language
      quote=$c before=$value
    elif [[ $c == [[:space:]] ]]; then
      value= broke=
    else
      value+=$c
      if [[ $c == [:=] ]]; then broke=$value; fi
    fi
  done
  [[ $quote ]] || before=$broke
  while IFS= read -r candidate; do
    case $candidate in
      *$'\t'*)
        candidate=${candidate%%$'\t'*}
        [[ $candidate == "$before"* ]] || continue
        candidate=${candidate#"$before"}
        # What is inserted must stay the word that it is. bash inserts it as it stands, behind the quote that is open, and then closes that.
        case $quote in
          \') candidate=${candidate//\'/\'\\\'\'} ;;
          \")
            candidate=${candidate//\\/\\\\}
            candidate=${candidate//\"/\\\"}
            candidate=${candidate//\$/\\\$}
            candidate=${candidate//\`/\\\`}
            candidate=${candidate//\!/\"\'\!\'\"} # of the history even in quotes
            ;;
          *)
            printf -v candidate %q "$candidate"
            # Of what cannot be printed here it makes $'...', which bash takes apart again when it inserts it.
            if [[ $candidate == \$\'* ]]; then continue; fi
            ;;
        esac
        COMPREPLY+=("$candidate")
        ;;
      *) directive=$candidate ;;
    esac
  done < <("${COMP_WORDS[0]}" __complete --line "$line" 2>/dev/null)
  case $directive in
    :nospace) compopt -o nospace ;;
    :files)
      local at=${value#"$before"}
      local front=
      [[ $at == @* ]] && front=@
      compopt -o filenames 2>/dev/null
      while IFS= read -r candidate; do COMPREPLY+=("$front$candidate"); done < <(compgen -f -- "${at#@}")
      ;;
  esac
}
complete -F _kvctl kvctl
