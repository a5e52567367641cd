package dapr

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	doors "kvstore/services/node"
	"kvstore/tests/testenv"
)

// runFile is the part of a run template of the Dapr CLI that dapr.yaml uses. The fields and what daprd is told of them are those of
// pkg/runfileconfig and pkg/standalone/run.go of github.com/dapr/cli, which does not resolve as a module. The CLI ignores names that it does not
// know; this test does not.
type runFile struct {
	Version int
	Common  struct {
		ResourcesPaths       []string `yaml:"resourcesPaths"`
		ConfigFilePath       string   `yaml:"configFilePath"`
		PlacementHostAddress string   `yaml:"placementHostAddress"`
		APIListenAddresses   string   `yaml:"apiListenAddresses"`
		LogLevel             string   `yaml:"logLevel"`
		AppLogDestination    string   `yaml:"appLogDestination"`
		DaprdLogDestination  string   `yaml:"daprdLogDestination"`
	}
	Apps []runApp
}

type runApp struct {
	AppID       string `yaml:"appID"`
	AppDirPath  string `yaml:"appDirPath"`
	AppPort     int    `yaml:"appPort"`
	AppProtocol string `yaml:"appProtocol"`
	Command     []string
}

// TestRunFile: what dapr run -f . starts by dapr.yaml is a cluster, through either of whose frontends there is one store. Sidecars and apps are
// started one after the other, in the file's order and by the options and variables that the CLI makes of it. Only ports differ, for tests run beside
// other servers.
func TestRunFile(t *testing.T) {
	const root = "../.."
	bin := testenv.Bin(t, "dapr")
	text, err := os.ReadFile(filepath.Join(root, "dapr.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file runFile
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	c := file.Common
	if file.Version != 1 || c.PlacementHostAddress != "localhost:50005" || c.AppLogDestination != "console" || c.DaprdLogDestination != "console" || len(file.Apps) != 5 {
		t.Fatalf("%+v", file)
	}
	redis, placement := testenv.NewRedis(t), testenv.NewPlacement(t, nil)
	var frontends []string
	for i, app := range file.Apps {
		if app.AppDirPath != "." || app.Command[0] != "bin/kvstored" {
			t.Fatalf("%+v", app)
		}
		instance := -1
		for j, arg := range app.Command {
			if n, ok := strings.CutPrefix(arg, "-instance="); ok {
				if instance, err = strconv.Atoi(n); err != nil {
					t.Fatal(err)
				}
			}
			app.Command[j] = strings.Replace(app.Command[j], "127.0.0.1:6390", redis.Addr, 1)
		}
		grpc, admin, data := testenv.FreeAddr(t), testenv.FreeAddr(t), testenv.FreeAddr(t)
		app.Command = append(app.Command, "-admin-listen="+admin)
		if slices.Contains(app.Command, "-target=frontend") {
			if app.AppID != "kvstore" || app.AppPort != doors.DoorGRPC.Port(instance) || app.AppProtocol != "grpc" {
				t.Fatalf("a frontend: %+v", app)
			}
			app.Command = append(app.Command, "-rest-listen="+testenv.FreeAddr(t))
			_, port, err := net.SplitHostPort(grpc)
			if err != nil {
				t.Fatal(err)
			}
			if app.AppPort, err = strconv.Atoi(port); err != nil {
				t.Fatal(err)
			}
			app.Command = append(app.Command, "-grpc-listen="+grpc)
			frontends = append(frontends, grpc)
		} else {
			if app.AppID != "kvstore-shard" || app.AppPort != 0 {
				t.Fatalf("a host of shards: %+v", app)
			}
			app.AppProtocol = "http" // the CLI's default; nothing is spoken without a port
			app.Command = append(app.Command, "-data-listen="+data)
		}

		ports := map[string]string{}
		for _, what := range []string{"dapr-http-port", "dapr-grpc-port", "metrics-port", "dapr-internal-grpc-port"} {
			_, ports[what], err = net.SplitHostPort(testenv.FreeAddr(t))
			if err != nil {
				t.Fatal(err)
			}
		}
		args := []string{
			"--app-id", app.AppID, "--app-port", fmt.Sprint(app.AppPort), "--app-protocol", app.AppProtocol, "--app-max-concurrency", "-1",
			"--max-body-size", "4Mi", "--read-buffer-size", "4Ki", "--profile-port", "-1", "--scheduler-host-address", "localhost:50006",
			"--placement-host-address", placement.Addr, "--dapr-listen-addresses", c.APIListenAddresses, "--log-level", c.LogLevel,
			"--config", filepath.Join(root, c.ConfigFilePath),
		}
		for _, path := range c.ResourcesPaths {
			args = append(args, "--resources-path", filepath.Join(root, path))
		}
		for what, port := range ports {
			args = append(args, "--"+what, port)
		}
		name := fmt.Sprint(app.AppID, "-", i)
		sidecar := &testenv.Sidecar{Process: testenv.NewProcess(t, "daprd-"+name, testenv.Dapr(t, "daprd"), args, nil), GRPC: net.JoinHostPort("127.0.0.1", ports["dapr-grpc-port"]), HTTP: net.JoinHostPort("127.0.0.1", ports["dapr-http-port"])}
		sidecar.Start(t)
		if app.AppPort == 0 { // with a port the sidecar waits for the app
			sidecar.Await(t.Context(), t)
		}
		p := testenv.NewProcess(t, name, filepath.Join(bin, "kvstored"), app.Command[1:], []string{
			"APP_ID=" + app.AppID, "APP_CHANNEL_ADDRESS=", "APP_PORT=" + fmt.Sprint(app.AppPort), "APP_PROTOCOL=" + app.AppProtocol, "DAPR_HTTP_PORT=" + ports["dapr-http-port"],
			"DAPR_GRPC_PORT=" + ports["dapr-grpc-port"], "DAPR_METRICS_PORT=" + ports["metrics-port"],
		})
		p.Start(t)
		p.AwaitHTTP(t.Context(), t, "http://"+admin+"/livez")
	}
	if len(frontends) != 2 {
		t.Fatalf("frontends: %v", frontends)
	}
	for i, f := range frontends {
		key, value := fmt.Sprint("greeting/", i), fmt.Sprint("hello by ", f)
		if _, err := testenv.Kvctl(t.Context(), bin, f, "put", key, value, "--timeout", "60s"); err != nil {
			t.Fatal(err)
		}
		if got, err := testenv.Kvctl(t.Context(), bin, frontends[1-i], "get", key); err != nil || string(got) != value {
			t.Fatalf("%q, %v", got, err)
		}
	}
}
