package cases

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/keelson/keelson/e2e/images"
)

// Story 7: everyday work with manifests.
func TestApply(t *testing.T) {
	s := begin(t, "manifests", 5*time.Minute)
	const manifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf, labels: {app: shop}}
data: {a: "1", b: "2"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, labels: {app: shop}}
spec:
  replicas: 1
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: $TEST, ports: [{containerPort: 8080}], env: [{name: A, value: "1"}]}]
---
apiVersion: v1
kind: Service
metadata: {name: shop, labels: {app: shop}}
spec: {selector: {app: shop}, ports: [{port: 80, targetPort: 8080}]}
`
	changed := strings.NewReplacer(`b: "2"`, `c: "3"`, `value: "1"`, `value: "2"`).Replace(manifest)

	out := s.apply(manifest, "--dry-run=server")
	s.says(out, "configmap/conf created (server dry run)", "deployment.apps/shop created (server dry run)")
	s.refused([]string{"not found"}, "get", "deployment", "shop")
	s.says(s.apply(manifest), "configmap/conf created", "deployment.apps/shop created", "service/shop created")
	s.says(s.apply(manifest), "configmap/conf unchanged", "deployment.apps/shop unchanged", "service/shop unchanged")

	out, err := s.stdin(fill(changed), "diff", "-f", "-")
	if code := exitCode(err); code != 1 {
		t.Errorf("kubectl diff of a change exits with %d; want 1\n%s", code, out)
	}
	s.says(out, "-  b: \"2\"", "+  c: \"3\"", `+          value: "2"`)
	s.says(s.apply(changed), "configmap/conf configured", "deployment.apps/shop configured", "service/shop unchanged")
	if out := s.kubectl("get", "configmap", "conf", "-o", "jsonpath={.data}"); out != `{"a":"1","c":"3"}` {
		t.Errorf("after the second apply data is %s: b must be gone", out)
	}
	if out, err := s.stdin(fill(changed), "diff", "-f", "-"); err != nil {
		t.Errorf("kubectl diff without a change: %v\n%s", err, out)
	}
	s.kubectl("wait", "--for=condition=Available", "deployment/shop", "--timeout", "60s")

	t.Run("server-side apply", func(t *testing.T) {
		s := s.sub(t)
		ssa := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {owner: alpha, only: alpha}\n"
		s.says(s.apply(ssa, "--server-side", "--field-manager=alpha"), "configmap/shared serverside-applied")
		s.apply(ssa, "--server-side", "--field-manager=alpha")
		other := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {owner: beta, more: beta}\n"
		out, err := s.tryApply(other, "--server-side", "--field-manager=beta")
		if err == nil {
			t.Errorf("taking a field of another manager succeeded:\n%s", out)
		}
		s.says(out, `conflict with "alpha": .data.owner`)
		s.apply(other, "--server-side", "--field-manager=beta", "--force-conflicts")
		if out := s.kubectl("get", "configmap", "shared", "-o", "jsonpath={.data}"); out != `{"more":"beta","only":"alpha","owner":"beta"}` {
			t.Errorf("data after --force-conflicts: %s", out)
		}
		// Alpha lets go of a field by no longer applying it; beta's stay.
		s.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\n", "--server-side", "--field-manager=alpha")
		if out := s.kubectl("get", "configmap", "shared", "-o", "jsonpath={.data}"); out != `{"more":"beta","owner":"beta"}` {
			t.Errorf("data after alpha applied nothing: %s", out)
		}
		s.says(s.kubectl("get", "configmap", "shared", "-o", "yaml", "--show-managed-fields"), "manager: beta", "operation: Apply", "f:owner")
	})

	t.Run("patches", func(t *testing.T) {
		s := s.sub(t)
		s.says(s.kubectl("patch", "deployment", "shop", "-p", `{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"B","value":"x"}]}]}}}}`), "patched")
		if out := s.kubectl("get", "deployment", "shop", "-o", "jsonpath={.spec.template.spec.containers[0].env[*].name} {.spec.template.spec.containers[0].image}"); out != "B A "+images.Test && out != "A B "+images.Test {
			t.Errorf("a strategic merge patch left %q: it merges lists by their key", out)
		}
		s.kubectl("patch", "configmap", "conf", "--type", "merge", "-p", `{"data":{"a":null,"d":"4"}}`)
		if out := s.kubectl("get", "configmap", "conf", "-o", "jsonpath={.data}"); out != `{"c":"3","d":"4"}` {
			t.Errorf("data after a merge patch: %s", out)
		}
		s.kubectl("patch", "configmap", "conf", "--type", "json", "-p", `[{"op":"test","path":"/data/c","value":"3"},{"op":"move","from":"/data/c","path":"/data/e"}]`)
		if out := s.kubectl("get", "configmap", "conf", "-o", "jsonpath={.data}"); out != `{"d":"4","e":"3"}` {
			t.Errorf("data after a JSON patch: %s", out)
		}
		s.refused([]string{"422"}, "patch", "configmap", "conf", "--type", "json", "-p", `[{"op":"test","path":"/data/d","value":"no"}]`, "-v=6")
		s.kubectl("patch", "deployment", "shop", "--subresource", "scale", "--type", "merge", "-p", `{"spec":{"replicas":2}}`)
		s.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=2", "deployment/shop", "--timeout", "60s")
		s.kubectl("patch", "pod", s.running(30*time.Second, "app=shop", 2)[0].Name, "--type", "merge", "-p", `{"metadata":{"annotations":{"seen":"yes"}}}`)
	})

	t.Run("edit", func(t *testing.T) {
		s := s.sub(t)
		cmd := s.command("edit", "configmap", "conf")
		cmd.Env = append(os.Environ(), `KUBE_EDITOR=sed -i "s/^  d: .*/  d: edited/"`)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "configmap/conf edited") {
			t.Errorf("kubectl edit: %v\n%s", err, out)
		}
		if out := s.kubectl("get", "configmap", "conf", "-o", "jsonpath={.data.d}"); out != "edited" {
			t.Errorf("after edit d is %q", out)
		}
	})

	t.Run("labels, selectors, output", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("label", "configmap", "conf", "tier=back")
		s.refused([]string{"already has a value"}, "label", "configmap", "conf", "tier=front")
		s.kubectl("label", "configmap", "conf", "tier=front", "--overwrite")
		s.kubectl("annotate", "configmap", "conf", "note=x")
		if out := s.kubectl("get", "cm,svc,deploy", "-l", "app=shop", "-o", "name"); out != "configmap/conf\nservice/shop\ndeployment.apps/shop\n" {
			t.Errorf("get -l app=shop -o name: %q", out)
		}
		if out := s.kubectl("get", "configmaps", "-l", "tier in (front,middle),app!=other", "-o", "name"); out != "configmap/conf\n" {
			t.Errorf("a set selector: %q", out)
		}
		if out := s.kubectl("get", "pods", "--field-selector", "status.phase=Running,metadata.namespace="+s.ns, "-o", `jsonpath={.items[*].kind}`); out != "Pod Pod" {
			t.Errorf("a field selector: %q", out)
		}
		s.says(s.kubectl("get", "deployments", "-o", "custom-columns=N:.metadata.name,R:.spec.replicas"), "N      R\nshop   2")
		s.says(s.kubectl("get", "deployment", "shop", "-o", "yaml"), "apiVersion: apps/v1", "kind: Deployment", "observedGeneration:", "progressDeadlineSeconds: 600", "revisionHistoryLimit: 10", "maxSurge: 25%")
		s.says(s.kubectl("get", "deployment", "shop", "-o", "wide"), "READY", "UP-TO-DATE", "AVAILABLE", "CONTAINERS", "IMAGES", "SELECTOR", "2/2", "app=shop")
		s.says(s.kubectl("describe", "deployment", "shop"), "StrategyType:", "RollingUpdate", "25% max unavailable, 25% max surge", "ScalingReplicaSet", "NewReplicaSet:")
		s.says(s.kubectl("get", "pods", "--sort-by=.metadata.creationTimestamp", "--show-labels"), "pod-template-hash=")
		s.says(s.kubectl("get", "all"), "pod/shop-", "service/shop", "deployment.apps/shop", "replicaset.apps/shop-")
	})

	t.Run("watch", func(t *testing.T) {
		s := s.sub(t)
		cmd := s.command("get", "configmaps", "-w", "--no-headers", "-o", "custom-columns=N:.metadata.name,V:.data.v")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		lines := make(chan string)
		go func() { // ends with kubectl
			sc := bufio.NewScanner(out)
			for sc.Scan() {
				lines <- strings.Join(strings.Fields(sc.Text()), " ")
			}
			close(lines)
		}()
		wants := func(want string) {
			t.Helper()
			limit := time.After(15 * time.Second)
			last := ""
			for {
				select {
				case l, ok := <-lines:
					last = l
					if l == want {
						return
					}
					if !ok {
						t.Fatalf("get -w ended before %q", want)
					}
				case <-limit:
					t.Fatalf("get -w did not print %q; last: %q", want, last)
				}
			}
		}
		wants("shared <none>")
		s.kubectl("create", "configmap", "watched", "--from-literal=v=1")
		wants("watched 1")
		s.kubectl("patch", "configmap", "watched", "-p", `{"data":{"v":"2"}}`)
		wants("watched 2")
		s.kubectl("delete", "configmap", "watched")
		wants("watched 2")
	})

	t.Run("auth can-i", func(t *testing.T) {
		s := s.sub(t)
		if out := s.kubectl("auth", "can-i", "delete", "pods"); out != "yes\n" {
			t.Errorf("can-i as the administrator: %q", out)
		}
		out, err := s.try("auth", "can-i", "delete", "pods", "--as", "nobody")
		if exitCode(err) != 1 || !strings.Contains(out, "no") {
			t.Errorf("can-i --as nobody: %q, %v", out, err)
		}
		s.says(s.kubectl("auth", "whoami"), "kubernetes-admin", "system:masters", "system:authenticated")
	})

	t.Run("replace and delete", func(t *testing.T) {
		s := s.sub(t)
		y := s.kubectl("get", "configmap", "conf", "-o", "yaml")
		s.kubectl("patch", "configmap", "conf", "-p", `{"data":{"z":"z"}}`)
		if out, err := s.stdin(y, "replace", "-f", "-"); err == nil || !strings.Contains(out, "the object has been modified; please apply your changes to the latest version and try again") {
			t.Errorf("replacing with an old resourceVersion: %v\n%s", err, out)
		}
		s.kubectl("delete", "deployment", "shop", "--wait=true", "--cascade=foreground", "--timeout", "60s")
		if pods := s.pods("app=shop"); len(pods) != 0 {
			t.Errorf("%d pods outlived a foreground deletion", len(pods))
		}
		s.says(s.kubectl("delete", "cm,svc", "-l", "app=shop"), `configmap "conf" deleted`, `service "shop" deleted`)
		s.refused([]string{`configmaps "conf" not found`}, "delete", "configmap", "conf")
		s.kubectl("delete", "configmap", "conf", "--ignore-not-found")
	})
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}
