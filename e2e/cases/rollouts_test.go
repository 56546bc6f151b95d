package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Story 4: new versions without a lost request, and the other workloads.
func TestRollouts(t *testing.T) {
	s := begin(t, "rollouts", 10*time.Minute)

	t.Run("rolling update under load", func(t *testing.T) {
		s := s.sub(t)
		s.apply(web("web", 4))
		s.apply(client("client", "node-2"))
		s.running(60*time.Second, "app=web", 4)
		s.running(30*time.Second, "role=client", 1)
		s.eventually(15*time.Second, "the service answers", func() (bool, string) {
			out, err := s.try("exec", "client", "--", "/testprogram", "get", "http://web")
			return err == nil, out
		})
		result := make(chan string, 1)
		load := s.command("exec", "client", "--", "/testprogram", "load", "http://web/", "50", "45")
		go func() {
			out, err := load.CombinedOutput()
			result <- fmt.Sprintf("%serr=%v", out, err)
		}()
		s.kubectl("set", "image", "deployment/web", "web="+fill("$TEST2"))
		s.says(s.kubectl("rollout", "status", "deployment/web", "--timeout", "60s"), `deployment "web" successfully rolled out`)
		for _, p := range s.running(30*time.Second, "app=web", 4) {
			if p.Spec.Containers[0].Image != fill("$TEST2") {
				t.Errorf("%s runs %s after the roll-out", p.Name, p.Spec.Containers[0].Image)
			}
		}
		s.says(s.kubectl("rollout", "history", "deployment/web"), "REVISION", "1", "2")
		s.says(s.kubectl("rollout", "history", "deployment/web", "--revision", "2"), fill("$TEST2"))
		s.kubectl("rollout", "undo", "deployment/web")
		s.kubectl("rollout", "status", "deployment/web", "--timeout", "60s")
		out := s.kubectl("get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
		if out != fill("$TEST") {
			t.Errorf("after undo the image is %s", out)
		}
		s.kubectl("rollout", "restart", "deployment/web")
		s.kubectl("rollout", "status", "deployment/web", "--timeout", "60s")
		got := <-result
		if !strings.Contains(got, "failures 0\n") || !strings.Contains(got, "err=<nil>") {
			t.Errorf("requests failed during the roll-outs:\n%s", got)
		}
		t.Logf("%s", got[strings.LastIndex(got, "requests "):])
	})

	t.Run("a bad version stops the roll-out, not the service", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("set", "image", "deployment/web", "web=keelson.local/nothing:9")
		s.eventually(40*time.Second, "the new pod cannot get its image", func() (bool, string) {
			out := s.kubectl("get", "pods", "-l", "app=web")
			return strings.Contains(out, "ErrImage") || strings.Contains(out, "ImagePullBackOff"), out
		})
		if out := s.kubectl("get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"); out != "3" && out != "4" {
			t.Errorf("%s of 4 are available during a bad roll-out", out)
		}
		s.in("client", "load", "http://web/", "20", "2")
		s.kubectl("rollout", "undo", "deployment/web")
		s.kubectl("rollout", "status", "deployment/web", "--timeout", "60s")
	})

	t.Run("scale to 50 and to 0", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("create", "deployment", "many", "--image", fill("$TEST"), "--replicas", "1")
		s.running(30*time.Second, "app=many", 1)
		s.kubectl("scale", "deployment/many", "--replicas", "50")
		began := time.Now()
		s.running(120*time.Second, "app=many", 50)
		t.Logf("50 pods were ready after %s", time.Since(began).Round(100*time.Millisecond))
		s.becomes(10*time.Second, "50", "get", "deployment", "many", "-o", "jsonpath={.status.readyReplicas}")
		s.kubectl("scale", "deployment/many", "--replicas", "0")
		s.running(120*time.Second, "app=many", 0)
	})

	t.Run("Job", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: sums}
spec:
  completions: 6
  parallelism: 2
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: $TEST, args: [exit, "0", "1"]}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: hopeless}
spec:
  backoffLimit: 2
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: $TEST, args: [exit, "3"]}]}
`)
		most := 0
		s.eventually(60*time.Second, "the job completes", func() (bool, string) {
			active := 0
			for _, p := range s.pods("job-name=sums") {
				if p.Status.Phase == corev1.PodRunning || p.Status.Phase == corev1.PodPending {
					active++
				}
			}
			most = max(most, active)
			out := s.kubectl("get", "job", "sums", "-o", "jsonpath={.status.succeeded}")
			return out == "6", "succeeded: " + out
		})
		if most > 2 {
			t.Errorf("%d pods of the job were active at once; parallelism is 2", most)
		}
		s.kubectl("wait", "--for=condition=complete", "job/sums", "--timeout", "20s")
		s.kubectl("wait", "--for=condition=failed", "job/hopeless", "--timeout", "120s")
		s.says(s.kubectl("get", "job", "hopeless", "-o", "jsonpath={.status.conditions[*].reason} {.status.failed}"), "BackoffLimitExceeded", "3")
	})

	t.Run("CronJob", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("create", "cronjob", "clock", "--image", fill("$TEST"), "--schedule", "* * * * *", "--", "/testprogram", "exit", "0")
		s.kubectl("create", "job", "by-hand", "--from=cronjob/clock")
		s.kubectl("wait", "--for=condition=complete", "job/by-hand", "--timeout", "30s")
		s.eventually(90*time.Second, "the minute's job has run", func() (bool, string) {
			out := s.kubectl("get", "jobs", "-o", "wide")
			jobs, err := cluster.Client.BatchV1().Jobs(s.ns).List(s.ctx, metav1.ListOptions{})
			if err != nil {
				return false, err.Error()
			}
			for _, j := range jobs.Items {
				if strings.HasPrefix(j.Name, "clock-") && j.Status.Succeeded == 1 {
					return true, out
				}
			}
			return false, out
		})
		s.kubectl("delete", "cronjob", "clock")
	})

	t.Run("DaemonSet", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: $TEST}]}
`)
		nodes := map[string]int{}
		for _, p := range s.running(60*time.Second, "app=agent", 2) {
			nodes[p.Spec.NodeName]++
		}
		if nodes["node-1"] != 1 || nodes["node-2"] != 1 {
			t.Errorf("the daemon set's pods: %v; want one on each node", nodes)
		}
		s.kubectl("rollout", "status", "daemonset/agent", "--timeout", "30s")
		s.kubectl("set", "image", "daemonset/agent", "c="+fill("$TEST2"))
		s.kubectl("rollout", "status", "daemonset/agent", "--timeout", "60s")
	})

	t.Run("StatefulSet in order", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ordered}
spec:
  serviceName: ordered
  replicas: 3
  selector: {matchLabels: {app: ordered}}
  template:
    metadata: {labels: {app: ordered}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: $TEST, readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}}]
`)
		s.running(90*time.Second, "app=ordered", 3)
		var before time.Time
		for i := range 3 {
			p := s.pod(fmt.Sprintf("ordered-%d", i))
			var since time.Time
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady {
					since = c.LastTransitionTime.Time
				}
			}
			if p.CreationTimestamp.Time.Before(before) {
				t.Errorf("%s was created at %s, before its predecessor was ready at %s", p.Name, p.CreationTimestamp, before)
			}
			before = since
		}
		s.kubectl("scale", "statefulset/ordered", "--replicas", "1")
		s.running(60*time.Second, "app=ordered", 1)
		s.pod("ordered-0")
		old := s.pod("ordered-0").UID
		s.kubectl("delete", "pod", "ordered-0")
		s.eventually(40*time.Second, "ordered-0 is back under its name", func() (bool, string) {
			p, err := cluster.Client.CoreV1().Pods(s.ns).Get(s.ctx, "ordered-0", metav1.GetOptions{})
			return err == nil && p.UID != old && ready(p), fmt.Sprint(err)
		})
	})
}
