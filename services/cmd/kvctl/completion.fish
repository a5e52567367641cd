# Completion of kvctl for fish. kvctl itself says what fits; here is what fish wants to have done with it.
function __kvctl_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    for candidate in ($words[1] __complete $words[2..-1] "$word" 2>/dev/null)
        switch $candidate
            case ':files'
                __fish_complete_path (string replace -r '^@' '' -- $word)
            case ':*'
            case '*'
                echo $candidate
        end
    end
end
complete -c kvctl -f -a '(__kvctl_complete)'
