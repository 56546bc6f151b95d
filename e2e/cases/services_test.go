package cases

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Story 3: services by address and by name, from pods and machines, on both machines.
func TestServices(t *testing.T) {
	s := begin(t, "services", 6*time.Minute)
	s.apply(client("client-1", "node-1"))
	s.apply(client("client-2", "node-2"))
	s.kubectl("create", "deployment", "web", "--image", fill("$TEST"), "--replicas", "4")
	web := s.running(60*time.Second, "app=web", 4)
	s.running(30*time.Second, "role=client", 2)
	names := map[string]bool{}
	for _, p := range web {
		names[p.Name] = true
	}
	// spread checks that the answers of a load came from every endpoint, and no other.
	spread := func(t *testing.T, from, out string) {
		t.Helper()
		got := map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)^\d+ (web-\S+)$`).FindAllStringSubmatch(out, -1) {
			got[m[1]] = true
		}
		for n := range names {
			if !got[n] {
				t.Errorf("%s: no answer from %s in:\n%s", from, n, out)
			}
		}
		if len(got) != len(names) {
			t.Errorf("%s: answers from %v; want those of %v", from, got, names)
		}
	}

	t.Run("ClusterIP", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("expose", "deployment", "web", "--port", "80", "--target-port", "8080")
		ip := s.kubectl("get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")
		s.eventually(15*time.Second, "the service answers", func() (bool, string) {
			out, err := s.try("exec", "client-2", "--", "/testprogram", "get", "http://"+ip)
			return err == nil, out
		})
		for _, c := range []string{"client-1", "client-2"} {
			for _, host := range []string{ip, "web", "web." + s.ns, "web." + s.ns + ".svc", "web." + s.ns + ".svc.cluster.local"} {
				spread(t, c+" to "+host, s.in(c, "load", "http://"+host, "40", "2"))
			}
		}
		for _, m := range cluster.Nodes {
			spread(t, m.Name+" to "+ip, s.on(m, program, "load", "http://"+ip, "40", "2"))
			out := s.on(m, "busybox", "nslookup", "web."+s.ns+".svc.cluster.local", "10.96.0.10")
			s.says(out, ip)
		}
		// Each pod also reaches itself through its own service.
		spread(t, "a pod of the service", s.in(web[0].Name, "load", "http://web", "40", "2"))
	})

	t.Run("a host port", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: porter}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: $TEST, ports: [{containerPort: 8080, hostPort: 8123}]}
`)
		s.becomes(30*time.Second, "True", "get", "pod", "porter", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		at := "http://" + cluster.Nodes[1].Address + ":8123"
		s.says(s.on(cluster.Nodes[0], program, "get", at), "porter")
		s.says(s.in("client-1", "get", at), "porter")
		s.kubectl("delete", "pod", "porter")
		if out, err := cluster.Nodes[0].Exec(s.ctx, program, "get", at); err == nil {
			t.Errorf("the port still answers: %s", out)
		}
		s.eventually(10*time.Second, "its rules are gone", func() (bool, string) {
			out := s.on(cluster.Nodes[1], "iptables", "-w", "-t", "nat", "-S")
			return !strings.Contains(out, "8123"), out
		})
	})

	t.Run("NodePort", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("expose", "deployment", "web", "--name", "web-np", "--type", "NodePort", "--port", "80", "--target-port", "8080")
		port := s.kubectl("get", "svc", "web-np", "-o", "jsonpath={.spec.ports[0].nodePort}")
		s.eventually(15*time.Second, "the node port answers", func() (bool, string) {
			out, err := cluster.Nodes[1].Exec(s.ctx, program, "get", "http://"+cluster.Nodes[0].Address+":"+port)
			return err == nil, out
		})
		for _, to := range cluster.Nodes {
			url := "http://" + to.Address + ":" + port
			for _, from := range cluster.Nodes {
				spread(t, from.Name+" to "+url, s.on(from, program, "load", url, "40", "2"))
			}
			spread(t, "client-1 to "+url, s.in("client-1", "load", url, "40", "2"))
		}
	})

	t.Run("local traffic policy keeps the client's address", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web-local}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
		port := s.kubectl("get", "svc", "web-local", "-o", "jsonpath={.spec.ports[0].nodePort}")
		url := "http://" + cluster.Nodes[0].Address + ":" + port
		s.eventually(15*time.Second, "the caller's address arrives", func() (bool, string) {
			out, err := cluster.Nodes[1].Exec(s.ctx, program, "get", url+"/client")
			return err == nil && strings.HasPrefix(out, cluster.Nodes[1].Address+":"), fmt.Sprint(out, err)
		})
		out := s.on(cluster.Nodes[1], program, "load", url, "40", "2")
		for _, p := range web {
			if here := strings.Contains(out, p.Name); here != (p.Spec.NodeName == "node-1") {
				t.Errorf("pod %s on %s answered node-1's port: %t\n%s", p.Name, p.Spec.NodeName, here, out)
			}
		}
	})

	t.Run("session affinity", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web-sticky}
spec: {sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
		s.eventually(15*time.Second, "the service answers", func() (bool, string) {
			out, err := s.try("exec", "client-1", "--", "/testprogram", "get", "http://web-sticky")
			return err == nil, out
		})
		out := s.in("client-1", "load", "http://web-sticky", "20", "2")
		if n := len(regexp.MustCompile(`(?m)^\d+ web-`).FindAllString(out, -1)); n != 1 {
			t.Errorf("one client got answers from %d pods:\n%s", n, out)
		}
	})

	t.Run("headless and StatefulSet names", func(t *testing.T) {
		s := s.sub(t)
		s.apply(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: $TEST, ports: [{name: http, containerPort: 8080}]}]
`)
		pods := s.running(60*time.Second, "app=db", 3)
		var all []string
		for _, p := range pods {
			all = append(all, p.Status.PodIP)
		}
		s.eventually(15*time.Second, "db resolves to all three", func() (bool, string) {
			out, _ := s.try("exec", "client-1", "--", "/testprogram", "lookup", "db")
			for _, ip := range all {
				if !strings.Contains(out+"\n", ip+"\n") {
					return false, out
				}
			}
			return strings.Count(strings.TrimSpace(out), "\n") == 2, out
		})
		for _, c := range []string{"client-1", "client-2"} {
			for i, p := range pods {
				name := fmt.Sprintf("%s.db.%s.svc.cluster.local", p.Name, s.ns)
				if out := s.in(c, "lookup", name); strings.TrimSpace(out) != p.Status.PodIP {
					t.Errorf("%s: %s resolves to %q; want %s", c, name, out, p.Status.PodIP)
				}
				if out := s.in(c, "get", fmt.Sprintf("http://%s.db:8080/", p.Name)); strings.TrimSpace(out) != p.Name {
					t.Errorf("%s: pod %d answered %q", c, i, out)
				}
			}
		}
		s.says(s.in("client-1", "srv", "_http._tcp.db."+s.ns+".svc.cluster.local"), "db-0.db."+s.ns+".svc.cluster.local.:8080", "db-2.db.")
	})

	t.Run("ExternalName and absent names", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("create", "service", "externalname", "alias", "--external-name", "web."+s.ns+".svc.cluster.local")
		ip := s.kubectl("get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")
		s.eventually(15*time.Second, "the alias resolves", func() (bool, string) {
			out, _ := s.try("exec", "client-1", "--", "/testprogram", "lookup", "alias")
			return strings.TrimSpace(out) == ip, out
		})
		s.refused([]string{"no such host"}, "exec", "client-1", "--", "/testprogram", "lookup", "nothing."+s.ns+".svc.cluster.local")
	})

	t.Run("no endpoints is refused at once", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("create", "service", "clusterip", "empty", "--tcp", "80")
		ip := s.kubectl("get", "svc", "empty", "-o", "jsonpath={.spec.clusterIP}")
		s.eventually(10*time.Second, "connections are refused", func() (bool, string) {
			began := time.Now()
			out, err := s.try("exec", "client-1", "--", "/testprogram", "get", "http://"+ip)
			return err != nil && strings.Contains(out, "refused") && time.Since(began) < 3*time.Second, out
		})
	})

	t.Run("scaled to none and back", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("scale", "deployment", "web", "--replicas", "0")
		s.running(40*time.Second, "app=web", 0)
		s.eventually(10*time.Second, "no endpoint is left", func() (bool, string) {
			l, err := cluster.Client.DiscoveryV1().EndpointSlices(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=web"})
			if err != nil {
				return false, err.Error()
			}
			n := 0
			for _, sl := range l.Items {
				n += len(sl.Endpoints)
			}
			return n == 0, fmt.Sprint(n, " endpoints")
		})
		s.kubectl("scale", "deployment", "web", "--replicas", "1")
		s.running(40*time.Second, "app=web", 1)
		s.eventually(10*time.Second, "the service answers again", func() (bool, string) {
			out, err := s.try("exec", "client-1", "--", "/testprogram", "get", "http://web")
			return err == nil, out
		})
	})
}
