package cases

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// Story 11: a machine that shares no network segment with the others joins. Its pods and
// theirs reach each other through the tunnel, with packets of any size; the tunnel goes
// when the machine does.
func TestSegments(t *testing.T) {
	s := begin(t, "segments", 6*time.Minute)
	segment, err := cluster.Behind(1)
	if err != nil {
		t.Fatal(err)
	}
	far, err := segment.Machine(s.ctx, "far", 61)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := far.PowerOff(); err != nil {
			t.Error(err)
		}
	}()
	if err := cluster.Join(s.ctx, far); err != nil {
		t.Fatal(err)
	}
	if err := far.Load(s.ctx, archive); err != nil {
		t.Fatal(err)
	}
	near := cluster.Nodes[0]
	tunnel := func(what string, want bool) {
		t.Helper()
		s.eventually(30*time.Second, near.Name+" "+what, func() (bool, string) {
			out, err := near.Exec(s.ctx, "ip", "-d", "link", "show", "keelson-vxlan")
			return (err == nil) == want, out
		})
	}
	tunnel("has a tunnel", true)
	// What pods get is decided before they start.
	s.eventually(30*time.Second, "new pods on "+near.Name+" have room for the tunnel's header", func() (bool, string) {
		out, err := near.Exec(s.ctx, "cat", "/etc/cni/net.d/10-keelson.conflist")
		return err == nil && strings.Contains(out, `"mtu": 1450`), fmt.Sprint(out, err)
	})

	pods := map[string]string{} // address by machine
	for _, m := range []string{near.Name, "far"} {
		s.apply(client("client-"+m, m))
		s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: web-%[1]s, labels: {app: web, on: %[1]s}}
spec: {nodeName: %[1]s, terminationGracePeriodSeconds: 1, containers: [{name: c, image: $TEST, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: on-%[1]s}
spec: {selector: {on: %[1]s}, ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, port: 80, targetPort: 8080, protocol: UDP}]}
`, m))
	}
	s.running(60*time.Second, "role=client", 2)
	for _, p := range s.running(60*time.Second, "app=web", 2) {
		pods[p.Spec.NodeName] = p.Status.PodIP
	}

	for from, to := range map[string]string{near.Name: "far", "far": near.Name} {
		t.Run("from "+from+" to "+to, func(t *testing.T) {
			s := s.sub(t)
			client := "client-" + from
			service := "on-" + to
			s.eventually(20*time.Second, "the service answers", func() (bool, string) {
				out, err := s.try("exec", client, "--", "/testprogram", "get", "http://"+service)
				return err == nil, out
			})
			for _, host := range []string{net.JoinHostPort(pods[to], "8080"), service, service + "." + s.ns + ".svc.cluster.local"} {
				s.says(s.in(client, "get", "http://"+host), "web-"+to)
				s.in(client, "bulk", "http://"+host, fmt.Sprint(20<<20))
			}
			// A full packet of the tunnel is 1450 bytes, 28 of them headers; more comes in pieces.
			for _, at := range []string{net.JoinHostPort(pods[to], "8080"), net.JoinHostPort(service, "80")} {
				for _, size := range []string{"1", "1400", "1422", "1423", "1472", "8000"} {
					s.in(client, "udp", at, size)
				}
			}
			// A node reaches the other's pods, too.
			for _, m := range append(cluster.Nodes[:1:1], far) {
				if m.Name == from {
					s.says(s.on(m, program, "get", "http://"+net.JoinHostPort(pods[to], "8080")), "web-"+to)
				}
			}
		})
	}

	t.Run("to the outside with the machine's address", func(t *testing.T) {
		s := s.sub(t)
		outside, err := cluster.Machine(s.ctx, "outside", 62)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := outside.PowerOff(); err != nil {
				t.Error(err)
			}
		}()
		server := outside.Command(s.ctx, program, "serve", "8080")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		url := "http://" + outside.Address + ":8080/client"
		s.eventually(20*time.Second, "a pod's packets come from its machine", func() (bool, string) {
			out, err := s.try("exec", "client-far", "--", "/testprogram", "get", url)
			return err == nil && strings.HasPrefix(out, far.Address+":"), fmt.Sprint(out, err)
		})
		s.in("client-far", "bulk", strings.TrimSuffix(url, "/client"), fmt.Sprint(5<<20))
		s.in("client-far", "udp", outside.Address+":8080", "1472")
	})

	s.kubectl("delete", "pods", "--all", "--force", "--grace-period", "0")
	if err := far.Stop(s.ctx, "kubelet"); err != nil { // it would register again
		t.Fatal(err)
	}
	s.kubectl("delete", "node", "far")
	tunnel("has no tunnel any more", false)
}
