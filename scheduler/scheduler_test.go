package scheduler

import (
	"os"
	"strings"
	"testing"

	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/testkit"
)

func TestPlan(t *testing.T) {
	f, err := os.Open("testdata/plan.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := Plan(f, DefaultProfile(), 1)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "plan.golden", got)
	if _, err := Plan(strings.NewReader("kind: Nonsense\napiVersion: v1\n"), DefaultProfile(), 1); err == nil || !strings.Contains(err.Error(), "document 1") {
		t.Errorf("unknown kind: %v", err)
	}
}

func TestConfiguration(t *testing.T) {
	if errs := Default().Validate(); len(errs) > 0 {
		t.Errorf("the defaults are refused: %v", errs)
	}
	cfg, _, err := config.Parse("scheduler", "", Default(), nil, []string{"--secure-port=1", "--leader-elect=false", "--kubeconfig=/k", "--bind-address=::1"}, nil)
	if err != nil || cfg.Serving.Port != 1 || cfg.LeaderElection.LeaderElect || cfg.Client.Kubeconfig != "/k" {
		t.Errorf("%+v, %v", cfg, err)
	}
	bad := Default()
	bad.PodInitialBackoffSeconds, bad.Parallelism, bad.Serving.Port = 0, 0, -1
	bad.Profiles = []Profile{{}, {}}
	if errs := bad.Validate(); len(errs) < 6 {
		t.Errorf("only %v", errs)
	}
}
