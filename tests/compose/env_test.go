package compose

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEnvExample: .env.example has all settings of docker-compose.yml, no others, and the values that hold without them.
func TestEnvExample(t *testing.T) {
	text := func(name string) string {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	// These are off without a setting, and the example shows how they are on.
	shown := map[string]bool{"DAPR_MTLS": true, "DAPR_TRUST_ANCHORS_FILE": true, "DAPR_TRUST_ANCHORS": true, "DAPR_API_TOKEN": true,
		"KVSTORE_ADMIN_LISTEN": true, "KVSTORE_OTLP_ENDPOINT": true}
	used, told := make(map[string]string), make(map[string]string)
	for _, m := range regexp.MustCompile(`\$\{([A-Z0-9_]+):-([^}]*)\}`).FindAllStringSubmatch(text("docker-compose.yml"), -1) {
		if shown[m[1]] {
			m[2] = "(shown)"
		}
		if value, ok := used[m[1]]; ok && value != m[2] {
			t.Errorf("%s is %q in one place of docker-compose.yml and %q in another", m[1], value, m[2])
		}
		used[m[1]] = m[2]
	}
	for line := range strings.Lines(text(".env.example")) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "#"), "=")
		if !ok || strings.Contains(name, " ") || name == "COMPOSE_PROFILES" { // that is compose's own
			continue
		}
		if shown[name] {
			value = "(shown)"
		}
		told[name] = value
	}
	if len(used) < 10 || !maps.Equal(used, told) {
		t.Errorf("docker-compose.yml has\n%v\n.env.example has\n%v", used, told)
	}
	if strings.Count(text("docker-compose.yml"), "${") != len(regexp.MustCompile(`\$\{[A-Z0-9_]+:-[^}]*\}`).FindAllString(text("docker-compose.yml"), -1)) {
		t.Error("a setting of docker-compose.yml has no value that holds without it")
	}
}
