package dapr

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kvstore/components/authn"
	"kvstore/tests/testenv"
)

// TestInvocation: an app of somebody else's, tests/daprapp, reaches the store by Dapr's service invocation, through its own sidecar and the
// store's, with TLS between the two and tokens at both doors. Whoever lacks one of the tokens is told so by the door that wants it.
func TestInvocation(t *testing.T) {
	sentry := testenv.NewSentry(t) // first: it skips the test when there is no Dapr
	bin := testenv.Bin(t, "dapr")
	appID := "kvstore-" + strings.ToLower(strings.ReplaceAll(filepath.Base(t.TempDir()), "_", "")) + "-" + freePort(t) // names are found by mDNS, on the whole network
	token := authn.NewToken()
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("daprapp "+authn.HashOf(token)+" default=write\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := testenv.New(t, bin, "-tokens", tokens)
	store.Start(t)
	store.Ready(t.Context(), t)
	_, port, err := net.SplitHostPort(store.Addr)
	if err != nil {
		t.Fatal(err)
	}
	const apiToken = "the sidecars' own token"
	env := []string{"DAPR_API_TOKEN=" + apiToken}
	testenv.NewSidecar(t, testenv.SidecarConfig{AppID: appID, Sentry: sentry, Env: env, Args: []string{"--app-port", port, "--app-protocol", "grpc"}})
	shop := testenv.NewSidecar(t, testenv.SidecarConfig{AppID: appID + "-shop", Sentry: sentry, Env: env})
	_, shopPort, err := net.SplitHostPort(shop.GRPC)
	if err != nil {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		name, apiToken, token string
		want                  []string
	}{
		{"no token for the sidecar", "", token, []string{"Unauthenticated", "Unauthorized"}},
		{"a wrong token for the sidecar", "guessed", token, []string{"Unauthenticated", "Unauthorized"}},
		{"no token for the store", apiToken, "", []string{"Unauthenticated", "token"}},
		{"a wrong token for the store", apiToken, authn.NewToken(), []string{"Unauthenticated", "token"}},
		{"both tokens", apiToken, token, nil},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
		app := exec.CommandContext(ctx, filepath.Join(bin, "daprapp"), "20")
		app.Env = append(os.Environ(), "DAPR_GRPC_PORT="+shopPort, "DAPR_API_TOKEN="+tc.apiToken, "KVSTORE_APP_ID="+appID, "KVSTORE_TOKEN="+tc.token)
		out, err := app.CombinedOutput()
		cancel()
		if (err == nil) != (tc.want == nil) {
			t.Errorf("%s: %v\n%s", tc.name, err, out)
		}
		for _, text := range tc.want {
			if !strings.Contains(string(out), text) {
				t.Errorf("%s: %s\nwant %q in it", tc.name, out, text)
			}
		}
		if strings.Contains(string(out), token) || strings.Contains(string(out), apiToken) {
			t.Errorf("%s: a token is in the output: %s", tc.name, out)
		}
	}
}

// TestInvocationOverHTTP: the same from an app that has no gRPC, by the sidecars' HTTP API and the store's REST door.
func TestInvocationOverHTTP(t *testing.T) {
	sentry := testenv.NewSentry(t)
	appID := "kvstore-" + strings.ToLower(strings.ReplaceAll(filepath.Base(t.TempDir()), "_", "")) + "-" + freePort(t)
	token := authn.NewToken()
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("shop "+authn.HashOf(token)+" default=write\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := testenv.New(t, testenv.Bin(t, "dapr"), "-tokens", tokens)
	store.Start(t)
	store.Ready(t.Context(), t)
	_, port, err := net.SplitHostPort(store.REST)
	if err != nil {
		t.Fatal(err)
	}
	const apiToken = "the sidecars' own token"
	env := []string{"DAPR_API_TOKEN=" + apiToken}
	testenv.NewSidecar(t, testenv.SidecarConfig{AppID: appID, Sentry: sentry, Env: env, Args: []string{"--app-port", port, "--app-protocol", "http"}})
	shop := testenv.NewSidecar(t, testenv.SidecarConfig{AppID: appID + "-shop", Sentry: sentry, Env: env})
	ask := func(method, path, body, apiToken, token string) (int, string, http.Header) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+shop.HTTP+"/v1.0/invoke/"+appID+"/method/api/v1"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("dapr-api-token", apiToken)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text), resp.Header
	}
	for _, tc := range []struct {
		line, body, apiToken, token string
		status                      int
		want                        string
	}{
		{"PUT /keys/cart/1", "one", apiToken, token, 201, `"created":true`},
		{"GET /keys/cart/1", "", apiToken, token, 200, "one"},
		{"GET /keys?prefix=cart/&values=true", "", apiToken, token, 200, `"value":"one"`},
		{"POST /batch/get", `{"gets":[{"key":"cart/1"}]}`, apiToken, token, 200, `"value":"one"`},
		{"GET /keys/none", "", apiToken, token, 404, `"reason":"NOT_FOUND"`},
		{"DELETE /keys/cart/1", "", apiToken, token, 200, `"deleted":true`},
		{"GET /keys/cart/1", "", apiToken, "", 401, `"reason":"UNAUTHENTICATED"`},
		{"GET /keys/cart/1", "", "guessed", token, 401, ""},
	} {
		method, path, _ := strings.Cut(tc.line, " ")
		status, body, header := ask(method, path, tc.body, tc.apiToken, tc.token)
		if status != tc.status || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %d %s %v, want %d and %s", tc.line, status, body, header, tc.status, tc.want)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(testenv.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	return port
}
