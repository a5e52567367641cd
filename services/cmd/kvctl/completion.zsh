#compdef kvctl
# Completion of kvctl for zsh. kvctl itself says what fits; here is what zsh wants to have done with it.
_kvctl() {
  local candidate directive=
  local -a words_found described
  while IFS= read -r candidate; do
    case $candidate in
      :*) directive=$candidate ;;
      *)
        words_found+=("${candidate%%$'\t'*}")
        described+=("${candidate/$'\t'/  -- }")
        ;;
    esac
  done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
  case $directive in
    :files)
      [[ $PREFIX == @* ]] && compset -P @
      _files
      ;;
    :nospace) compadd -S '' -l -d described -a words_found ;;
    *) (( $#words_found )) && compadd -l -d described -a words_found ;;
  esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _kvctl "$@"
else
  compdef _kvctl kvctl
fi
