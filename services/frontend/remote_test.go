package frontend

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"kvstore/actors/host"
	"kvstore/actors/host/memhost"
	"kvstore/components/wal"
	"kvstore/services/dataplane"
)

// remote makes rigs whose shards live on two hosts that the frontend reaches over the data plane.
var remote bool

// apiTests are the tests of what users see, which must hold wherever shards live.
var apiTests = map[string]func(*testing.T){
	"KeyspacesAndNamespaces":          TestKeyspacesAndNamespaces,
	"AdminRefusals":                   TestAdminRefusals,
	"DamagedValueIsDataLoss":          TestDamagedValueIsDataLoss,
	"NoWrongByteEndsWell":             TestNoWrongByteEndsWell,
	"RewrittenMeanwhile":              TestRewrittenMeanwhile,
	"OwnFaultsAreLogged":              TestOwnFaultsAreLogged,
	"PutGetDelete":                    TestPutGetDelete,
	"KeepTTL":                         TestKeepTTL,
	"Preconditions":                   TestPreconditions,
	"Limits":                          TestLimits,
	"MessageOverGRPCLimit":            TestMessageOverGRPCLimit,
	"RepeatedWriteIsAppliedOnce":      TestRepeatedWriteIsAppliedOnce,
	"Batches":                         TestBatches,
	"BatchGetFitsReply":               TestBatchGetFitsReply,
	"Transaction":                     TestTransaction,
	"ListPages":                       TestListPages,
	"ListPagesWhileKeysGo":            TestListPagesWhileKeysGo,
	"ListPageEndsBeforeReplyOutgrows": TestListPageEndsBeforeReplyOutgrows,
	"Streams":                         TestStreams,
	"PutStreamFaults":                 TestPutStreamFaults,
	"PipelineAnswersEverything":       TestPipelineAnswersEverything,
	"PipelineErrorsAreOfOperations":   TestPipelineErrorsAreOfOperations,
	"PipelineIdentity":                TestPipelineIdentity,
	"PipelineMalformedFramesEndIt":    TestPipelineMalformedFramesEndIt,
	"PipelineIsBounded":               TestPipelineIsBounded,
	"PipelineLate":                    TestPipelineLate,
	"PipelineCanceled":                TestPipelineCanceled,
	"PipelineStops":                   TestPipelineStops,
	"PipelineFollowEnds":              TestPipelineFollowEnds,
	"PromptRoundTrip":                 TestPromptRoundTrip,
	"PromptHoles":                     TestPromptHoles,
	"PromptFirstWriterWins":           TestPromptFirstWriterWins,
	"PromptDamage":                    TestPromptDamage,
	"PromptUnreachableIsNoMiss":       TestPromptUnreachableIsNoMiss,
	"PromptWriteTakesATurn":           TestPromptWriteTakesATurn,
	"PromptLeasesAndPins":             TestPromptLeasesAndPins,
	"PromptListAndUsage":              TestPromptListAndUsage,
	"PromptCapacity":                  TestPromptCapacity,
	"PromptLimits":                    TestPromptLimits,
	"PromptChunksAreRead":             TestPromptChunksAreRead,
	"PromptTTL":                       TestPromptTTL,
	"PromptStoresOnce":                TestPromptStoresOnce,
	"PromptNoWrongByteLeaves":         TestPromptNoWrongByteLeaves,
	"PromptRepeated":                  TestPromptRepeated,
	"WhoMayCallWhat":                  TestWhoMayCallWhat,
	"NobodyComesByAnotherWay":         TestNobodyComesByAnotherWay,
	"PipelineRights":                  TestPipelineRights,
	"RevokedTokenEndsStreams":         TestRevokedTokenEndsStreams,
	"PromptPartsOfARequest":           TestPromptPartsOfARequest,
	"RevokedTokenEndsWatch":           TestRevokedTokenEndsWatch,
	"WatchStateHasNoTokens":           TestWatchStateHasNoTokens,
	"WatchFromTokenWithoutAShard":     TestWatchFromTokenWithoutAShard,
	"WatchKey":                        TestWatchKey,
	"WatchPrefixWithState":            TestWatchPrefixWithState,
	"WatchFromList":                   TestWatchFromList,
	"WatchValues":                     TestWatchValues,
	"WatchersOfOneKey":                TestWatchersOfOneKey,
	"WatchRefusals":                   TestWatchRefusals,
	"WatchEnds":                       TestWatchEnds,
	"WatchProgress":                   TestWatchProgress,
	"Watches":                         TestWatches,
	"WatchesCredit":                   TestWatchesCredit,
	"WatchesRefusals":                 TestWatchesRefusals,
	"WatchPrompts":                    TestWatchPrompts,
	"WatchEvictions":                  TestWatchEvictions,
	"SlowWatcher":                     TestSlowWatcher,
	"NamespaceRate":                   TestNamespaceRate,
	"RefusedCostsNothing":             TestRefusedCostsNothing,
	"TokenRate":                       TestTokenRate,
}

// localTests are those that meet no shard.
var localTests = []string{
	"OverDataPlane", "StatusOnABadDay", "EveryAPITestRunsOverTheDataPlane", "FrameDecodersAgree", "ResultEncodersAgree", "CodecLeavesFramesAlone", "SortPairsKeepsTheLast",
	"PageToken", "SessionTokenFitsItsRoom", "EveryCallIsInTheTable", "Bucket", "ClientsAreBounded", "ClientRate", "PipelineLimit", "StoreTurns",
}

// TestOverDataPlane runs the tests of the API once more, with the shards on two hosts.
func TestOverDataPlane(t *testing.T) {
	remote = true
	defer func() { remote = false }()
	for name, test := range apiTests {
		t.Run(name, test)
	}
}

// TestEveryAPITestRunsOverTheDataPlane keeps the list complete.
func TestEveryAPITestRunsOverTheDataPlane(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			if name := strings.TrimPrefix(f.Name.Name, "Test"); apiTests[name] == nil && !slices.Contains(localTests, name) {
				t.Errorf("%s is in neither of apiTests and localTests", f.Name.Name)
			}
		}
	}
}

// overDataPlane serves the store's shards on two hosts, odd and even ones, and returns the way there and what ends it all but the first
// host.
func overDataPlane(tb testing.TB, store *wal.Store, first *memhost.Host) (_ Shards, leave func()) {
	second, err := memhost.New(store, memhost.Config{Address: "second"})
	if err != nil {
		tb.Fatal(err)
	}
	var at places
	var stops []func()
	for i, h := range []*memhost.Host{first, second} {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		at[i] = lis.Addr().String()
		plane := dataplane.NewServer(h, dataplane.ServerConfig{})
		srv := grpc.NewServer(dataplane.ServerOptions(nil)...)
		plane.Register(srv)
		served := make(chan error, 1)
		go func() { served <- srv.Serve(lis) }()
		stops = append(stops, func() {
			srv.Stop()
			plane.Close()
			if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // a test may be over before Serve began
				tb.Errorf("serve the data plane: %v", err)
			}
		})
	}
	client, err := dataplane.NewClient(dataplane.ClientConfig{Locator: at})
	if err != nil {
		tb.Fatal(err)
	}
	return client, func() {
		client.Close()
		for _, stop := range stops {
			stop()
		}
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := second.Close(ctx, false); err != nil {
			tb.Errorf("close the second host: %v", err)
		}
	}
}

// places are the addresses of two hosts; a shard's number says which of them has it.
type places [2]string

func (p places) Locate(_ context.Context, shardID string) (host.Location, error) {
	n, err := strconv.Atoi(shardID[strings.LastIndexByte(shardID, '-')+1:])
	if err != nil {
		return host.Location{}, err
	}
	return host.Location{Address: p[n%2]}, nil
}
