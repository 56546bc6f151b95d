package cases

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson/keelson/e2e/lab"
)

// Story 10: down leaves nothing behind, up resumes, reset forgets. It has a machine and a
// cluster of its own.
func TestDownUp(t *testing.T) {
	s := begin(t, "downup", 6*time.Minute)
	m, err := cluster.Machine(s.ctx, "solo", 50)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.PowerOff(); err != nil {
			t.Error(err)
		}
	}()
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := m.Keelson(s.ctx, append([]string{"kubectl"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	clean := look(s, m)

	began := time.Now()
	out, err := m.Up(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	s.says(out, "✓", "certificates", "node solo", "Ready", "kubectl get nodes,pods -A")
	t.Logf("keelson up: %s\n%s", took, out)
	if err := m.Load(s.ctx, archive); err != nil {
		t.Fatal(err)
	}
	kubectl("create", "deployment", "web", "--image", fill("$TEST"), "--replicas", "2")
	kubectl("expose", "deployment", "web", "--type", "NodePort", "--port", "80", "--target-port", "8080")
	kubectl("create", "secret", "generic", "mounted", "--from-literal=a=b")
	kubectl("run", "holder", "--image", fill("$TEST"), "--overrides",
		`{"spec":{"volumes":[{"name":"s","secret":{"secretName":"mounted"}},{"name":"m","emptyDir":{"medium":"Memory"}}],"containers":[{"name":"holder","image":"`+fill("$TEST")+`","volumeMounts":[{"name":"s","mountPath":"/s"},{"name":"m","mountPath":"/m"}]}]}}`)
	kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout", "60s")
	kubectl("wait", "--for=condition=Ready", "pod/holder", "--timeout", "60s")

	// Up once more changes nothing.
	before, err := m.PID("apiserver")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Up(s.ctx); err != nil {
		t.Errorf("up on a running machine: %v", err)
	}
	if after, _ := m.PID("apiserver"); after != before {
		t.Errorf("a second up restarted the apiserver")
	}

	if out, err = m.Keelson(s.ctx, "down"); err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	if left := look(s, m); left != clean {
		t.Errorf("down left something behind.\nbefore up:\n%s\nafter down:\n%s", clean, left)
	}
	if out, err := m.Keelson(s.ctx, "down"); err != nil {
		t.Errorf("a second down: %v\n%s", err, out)
	}
	if _, err := m.Keelson(s.ctx, "status"); err == nil || !strings.Contains(err.Error(), "keelson up") {
		t.Errorf("status of a stopped machine: %v", err)
	}

	began = time.Now()
	if out, err = m.Up(s.ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("up again: %s\n%s", time.Since(began), out)
	s.eventually(90*time.Second, "the workloads are back", func() (bool, string) {
		out, err := m.Keelson(s.ctx, "kubectl", "get", "deployment/web", "pod/holder", "-o", "jsonpath={.items[0].status.readyReplicas} {.items[1].status.containerStatuses[0].ready}")
		return err == nil && out == "2 true", fmt.Sprint(out, err)
	})
	port := kubectl("get", "svc", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
	s.eventually(20*time.Second, "the service answers", func() (bool, string) {
		out, err := m.Exec(s.ctx, program, "get", "http://"+m.Address+":"+port)
		return err == nil, fmt.Sprint(out, err)
	})

	// The supervisor restarts what dies, and a new supervisor takes over a dead one's.
	if err := m.Kill(s.ctx, "kube-proxy"); err != nil {
		t.Fatal(err)
	}
	s.eventually(20*time.Second, "kube-proxy is back", func() (bool, string) {
		out, err := m.Keelson(s.ctx, "status")
		return err == nil, fmt.Sprint(out, err)
	})
	before, err = m.PID("apiserver")
	if err != nil {
		t.Fatal(err)
	}
	s.on(m, "sh", "-c", `kill -KILL $(ps ax -o pid,args | awk '/keelson supervise/ && !/awk/ {print $1}')`)
	if _, err := m.Up(s.ctx); err != nil {
		t.Errorf("up after the supervisor's death: %v", err)
	}
	if after, _ := m.PID("apiserver"); after != before {
		t.Errorf("the new supervisor restarted the apiserver instead of adopting it")
	}

	if _, err := m.Keelson(s.ctx, "reset", "--yes"); err != nil {
		t.Fatal(err)
	}
	if left := look(s, m); left != clean {
		t.Errorf("reset left something behind.\nbefore up:\n%s\nafter reset:\n%s", clean, left)
	}
	for _, dir := range []string{"etc/keelson", "var/lib/keelson", "var/lib/kubelet"} {
		rest, err := filepath.Glob(filepath.Join(m.Path(dir), "*"))
		if err != nil || len(rest) > 0 {
			t.Errorf("reset left %v (%v)", rest, err)
		}
	}
}

// look describes what a machine holds besides files: processes, mounts, interfaces,
// routes, rules, cgroups, sockets.
func look(s *story, m *lab.Machine) string {
	s.Helper()
	script := `
echo "# processes"; ps ax -o args= | grep -v -e '^ps ' -e '^grep ' -e '^sh -c' -e '^nsenter' -e '^sort' | sort
echo "# mounts"; awk '{print $5}' /proc/self/mountinfo | sort
echo "# interfaces"; ip -o link | awk -F': ' '{print $2}' | sort
echo "# routes"; ip route | sort; ip -6 route show table main | grep -v '^fe80' | sort
echo "# rules"; for c in iptables ip6tables; do for t in nat filter mangle; do $c -w -t $t -S 2>/dev/null; done; done
echo "# sets"; nft list sets 2>/dev/null | grep -i -e keelson -e kube
echo "# cgroups"; for d in /sys/fs/cgroup/* /sys/fs/cgroup; do find $d -maxdepth 1 -type d -name 'k*'; done | sort -u
echo "# sockets"; ss -Hlntup | awk '{print $5}' | sort
echo "# namespaces"; ls /run/netns
true`
	return s.on(m, "sh", "-c", script)
}
