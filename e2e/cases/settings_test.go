package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Story 6: what a container is given: settings, secrets, volumes, limits.
func TestSettings(t *testing.T) {
	s := begin(t, "settings", 8*time.Minute)
	s.kubectl("create", "configmap", "conf", "--from-literal=color=blue", "--from-literal=app.ini=size=1")
	s.kubectl("create", "secret", "generic", "pass", "--from-literal=user=anna", "--from-literal=word=s3cret")

	t.Run("ConfigMaps and Secrets", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {tier: front}, annotations: {note: hello}}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: pass, secret: {secretName: pass, defaultMode: 0400, items: [{key: word, path: deep/word}]}}
  - name: about
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}
  - name: all
    projected: {sources: [{configMap: {name: conf, items: [{key: color, path: c/color}]}}, {secret: {name: pass}}, {serviceAccountToken: {path: token, audience: someone, expirationSeconds: 3600}}]}
  containers:
  - name: c
    image: $TEST
    args: [sleep]
    resources: {limits: {cpu: 250m, memory: 64Mi}, requests: {cpu: 50m, memory: 16Mi}}
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: conf, key: color}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: pass, key: word}}}
    - {name: MAYBE, valueFrom: {configMapKeyRef: {name: absent, key: x, optional: true}}}
    - {name: GREETING, value: "the color is $(COLOR), not $$(COLOR)"}
    - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    envFrom: [{prefix: P_, secretRef: {name: pass}}]
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /single/app.ini, subPath: app.ini}
    - {name: pass, mountPath: /pass, readOnly: true}
    - {name: about, mountPath: /about}
    - {name: all, mountPath: /all}
`)
		s.becomes(30*time.Second, "Running", "get", "pod", "reader", "-o", "jsonpath={.status.phase}")
		p := s.pod("reader")
		for name, want := range map[string]string{
			"COLOR": "blue", "WORD": "s3cret", "MAYBE": "", "GREETING": "the color is blue, not $(COLOR)", "ME": "reader",
			"IP": p.Status.PodIP, "NODE": p.Spec.NodeName, "MEM": "67108864", "P_user": "anna", "P_word": "s3cret",
			"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443",
		} {
			if got := strings.TrimSuffix(s.in("reader", "env", name), "\n"); got != want {
				t.Errorf("env %s: %q, want %q", name, got, want)
			}
		}
		cat := func(file string) string { return s.kubectl("exec", "reader", "--", "cat", file) }
		for file, want := range map[string]string{
			"/conf/color": "blue", "/conf/app.ini": "size=1", "/single/app.ini": "size=1", "/pass/deep/word": "s3cret",
			"/about/labels": `tier="front"`, "/about/cpu": "250", "/all/c/color": "blue", "/all/user": "anna",
		} {
			if got := cat(file); got != want {
				t.Errorf("%s: %q, want %q", file, got, want)
			}
		}
		if n := strings.Count(cat("/all/token"), "."); n != 2 {
			t.Errorf("the projected token is no JWT: %d dots", n)
		}
		if mode := strings.TrimSpace(s.kubectl("exec", "reader", "--", "stat", "-L", "-c", "%a", "/pass/deep/word")); mode != "400" {
			t.Errorf("mode of the secret's file: %s", mode)
		}
		s.refused([]string{"Read-only file system"}, "exec", "reader", "--", "touch", "/pass/x")

		// Updates reach the running pod; a subPath keeps what it had.
		s.kubectl("patch", "configmap", "conf", "-p", `{"data":{"color":"green","app.ini":"size=2"}}`)
		s.kubectl("patch", "secret", "pass", "-p", `{"stringData":{"word":"changed"}}`)
		s.kubectl("label", "pod", "reader", "tier=back", "--overwrite")
		s.eventually(100*time.Second, "the updates arrive", func() (bool, string) {
			out := cat("/conf/color") + " " + cat("/pass/deep/word") + " " + cat("/about/labels") + " " + cat("/all/c/color")
			return out == `green changed tier="back" green`, out
		})
		if got := cat("/single/app.ini"); got != "size=1" {
			t.Errorf("the subPath changed to %q", got)
		}
		if got := strings.TrimSpace(s.in("reader", "env", "COLOR")); got != "blue" {
			t.Errorf("the environment changed to %q", got)
		}
	})

	t.Run("a missing ConfigMap holds the pod until it is there", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hopeful}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: $TEST, args: [sleep], env: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}]}]}
`)
		s.eventually(30*time.Second, "the pod says what it lacks", func() (bool, string) {
			p := s.pod("hopeful")
			w := waiting(p)
			return strings.Contains(w, "CreateContainerConfigError") && strings.Contains(w, `configmap "later" not found`), w
		})
		s.kubectl("create", "configmap", "later", "--from-literal=a=b")
		s.becomes(60*time.Second, "Running", "get", "pod", "hopeful", "-o", "jsonpath={.status.phase}")
	})

	t.Run("shared emptyDir, init containers, sidecar", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: family}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes: [{name: shared, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
  initContainers:
  - {name: first, image: $BUSYBOX, command: [sh, -c, "echo one >/s/order"], volumeMounts: [{name: shared, mountPath: /s}]}
  - {name: side, image: $BUSYBOX, restartPolicy: Always, command: [sh, -c, "echo side >>/s/order; sleep 100000"], volumeMounts: [{name: shared, mountPath: /s}], startupProbe: {exec: {command: [grep, side, /s/order]}, periodSeconds: 1}}
  - {name: second, image: $BUSYBOX, command: [sh, -c, "echo two >>/s/order"], volumeMounts: [{name: shared, mountPath: /s}]}
  containers:
  - {name: writer, image: $BUSYBOX, command: [sh, -c, "echo from-writer >/s/note; df /m | grep -q tmpfs && echo tmpfs >/s/kind"], volumeMounts: [{name: shared, mountPath: /s}, {name: memory, mountPath: /m}]}
  - {name: reader, image: $BUSYBOX, command: [sh, -c, "until [ -s /s/kind ]; do sleep 0.1; done; cat /s/order /s/note /s/kind"], volumeMounts: [{name: shared, mountPath: /s}]}
`)
		s.eventually(60*time.Second, "the pod has succeeded", func() (bool, string) {
			p := s.pod("family")
			return p.Status.Phase == corev1.PodSucceeded, string(p.Status.Phase) + " " + waiting(p)
		})
		if out := s.kubectl("logs", "family", "-c", "reader"); out != "one\nside\ntwo\nfrom-writer\ntmpfs\n" {
			t.Errorf("the containers saw %q", out)
		}
	})

	t.Run("limits are enforced", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec: {restartPolicy: Never, containers: [{name: c, image: $TEST, args: [oom], resources: {limits: {memory: 48Mi}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec: {restartPolicy: Never, containers: [{name: c, image: $BUSYBOX, command: [sh, -c, "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat 2>/dev/null; true"], resources: {limits: {cpu: 100m}}}]}
`)
		s.eventually(60*time.Second, "the pod was killed for its memory", func() (bool, string) {
			p := s.pod("hungry")
			if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Terminated == nil {
				return false, fmt.Sprintf("%+v", p.Status)
			}
			st := p.Status.ContainerStatuses[0].State.Terminated
			return p.Status.Phase == corev1.PodFailed && st.Reason == "OOMKilled" && st.ExitCode == 137, fmt.Sprintf("%+v", st)
		})
		s.says(s.kubectl("get", "pod", "hungry"), "OOMKilled")
		phase, log := s.ended(90*time.Second, "slow")
		if phase != corev1.PodSucceeded || !strings.Contains(log, "nr_throttled") || strings.Contains(log, "nr_throttled 0\n") {
			t.Errorf("a busy loop with 100m was not throttled: %s\n%s", phase, log)
		}
		for name, class := range map[string]string{"hungry": "Burstable", "reader": "Burstable", "family": "BestEffort"} {
			if got := s.kubectl("get", "pod", name, "-o", "jsonpath={.status.qosClass}"); got != class {
				t.Errorf("QoS class of %s: %s, want %s", name, got, class)
			}
		}
	})

	t.Run("security context and hooks", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456}
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: $BUSYBOX
    command: [sh, -c, "until [ -f /v/hook ]; do sleep 0.1; done; id; stat -c %g /v; touch /x 2>&1; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status"]
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    lifecycle: {postStart: {exec: {command: [touch, /v/hook]}}}
    volumeMounts: [{name: v, mountPath: /v}]
---
apiVersion: v1
kind: Pod
metadata: {name: rootless}
spec: {restartPolicy: Never, containers: [{name: c, image: $TEST, args: [env], securityContext: {runAsNonRoot: true}}]}
`)
		_, log := s.ended(40*time.Second, "modest")
		s.says(log, "uid=1234 gid=2345", "3456", "Read-only file system", "CapEff:\t0000000000000000", "NoNewPrivs:\t1")
		s.eventually(30*time.Second, "a root image is refused for runAsNonRoot", func() (bool, string) {
			w := waiting(s.pod("rootless"))
			return strings.Contains(w, "CreateContainerConfigError") && strings.Contains(w, "runAsNonRoot"), w
		})
	})

	t.Run("graceful end", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec: {terminationGracePeriodSeconds: 3, containers: [{name: c, image: $TEST, args: [stay]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec: {terminationGracePeriodSeconds: 30, containers: [{name: c, image: $TEST, args: [sleep]}]}
`)
		for _, p := range []string{"stubborn", "polite"} {
			s.becomes(30*time.Second, "Running", "get", "pod", p, "-o", "jsonpath={.status.phase}")
		}
		began := time.Now()
		s.kubectl("delete", "pod", "polite")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a pod that ends at SIGTERM took %s to go", took)
		}
		began = time.Now()
		s.kubectl("delete", "pod", "stubborn")
		if took := time.Since(began); took < 2500*time.Millisecond || took > 10*time.Second {
			t.Errorf("a pod that ignores SIGTERM, with 3 s of grace, took %s to go", took)
		}
	})
}
