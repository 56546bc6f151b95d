package cases

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Story 8: everyone may do what was granted, and no more.
func TestRights(t *testing.T) {
	s := begin(t, "rights", 4*time.Minute)

	t.Run("view cannot delete", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("create", "rolebinding", "anna-views", "--clusterrole", "view", "--user", "anna")
		s.kubectl("create", "configmap", "conf")
		s.kubectl("create", "secret", "generic", "hidden")
		s.kubectl("--as", "anna", "get", "configmaps")
		s.refused([]string{`Error from server (Forbidden): configmaps "conf" is forbidden: User "anna" cannot delete resource "configmaps" in API group "" in the namespace "` + s.ns + `"`},
			"--as", "anna", "delete", "configmap", "conf")
		s.refused([]string{`secrets is forbidden: User "anna" cannot list resource "secrets"`}, "--as", "anna", "get", "secrets")
		s.refused([]string{`nodes is forbidden: User "anna" cannot list resource "nodes" in API group "" at the cluster scope`}, "--as", "anna", "get", "nodes")
		s.refused([]string{`cannot list resource "configmaps"`}, "--as", "anna", "get", "configmaps", "-n", "kube-system")
		// Nobody hands out more than they have.
		s.kubectl("create", "rolebinding", "berta-edits-roles", "--clusterrole", "admin", "--user", "berta")
		s.refused([]string{"attempting to grant RBAC permissions not currently held"}, "--as", "berta", "create", "role", "greedy", "--verb", "get", "--resource", "nodes")
		s.kubectl("--as", "berta", "create", "role", "modest", "--verb", "get", "--resource", "pods")
	})

	t.Run("a pod's token", func(t *testing.T) {
		s := s.sub(t)
		s.kubectl("create", "serviceaccount", "robot")
		s.kubectl("create", "role", "reads-pods", "--verb", "get,list", "--resource", "pods")
		s.kubectl("create", "rolebinding", "robot-reads-pods", "--role", "reads-pods", "--serviceaccount", s.ns+":robot")
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: robot}
spec: {serviceAccountName: robot, terminationGracePeriodSeconds: 1, containers: [{name: c, image: $TEST, args: [sleep]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: mute}
spec: {serviceAccountName: robot, automountServiceAccountToken: false, terminationGracePeriodSeconds: 1, containers: [{name: c, image: $TEST, args: [sleep]}]}
`)
		for _, p := range []string{"robot", "mute"} {
			s.becomes(30*time.Second, "Running", "get", "pod", p, "-o", "jsonpath={.status.phase}")
		}
		base := "/api/v1/namespaces/" + s.ns
		out := s.in("robot", "api", "GET", base+"/pods/robot")
		if !strings.HasPrefix(out, "200 ") || !strings.Contains(out, `"robot"`) {
			t.Errorf("the pod reads itself: %s", out)
		}
		out = s.in("robot", "api", "DELETE", base+"/pods/robot")
		var status metav1.Status
		if err := json.Unmarshal([]byte(strings.TrimPrefix(out, "403 ")), &status); err != nil || status.Reason != metav1.StatusReasonForbidden ||
			!strings.Contains(status.Message, `User "system:serviceaccount:`+s.ns+`:robot" cannot delete resource "pods"`) {
			t.Errorf("the pod deletes itself: %s", out)
		}
		if out := s.in("robot", "api", "GET", base+"/secrets"); !strings.HasPrefix(out, "403 ") {
			t.Errorf("the pod lists secrets: %s", out)
		}
		if out := s.in("robot", "api", "GET", "/api/v1/namespaces/default/pods"); !strings.HasPrefix(out, "403 ") {
			t.Errorf("the pod lists another namespace's pods: %s", out)
		}
		s.refused([]string{"No such file"}, "exec", "mute", "--", "ls", "/var/run/secrets/kubernetes.io/serviceaccount")

		// The token dies with its pod.
		token := strings.TrimSpace(s.kubectl("exec", "robot", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"))
		cfg := rest.AnonymousClientConfig(cluster.Config)
		cfg.BearerToken = token
		c, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.CoreV1().Pods(s.ns).Get(s.ctx, "robot", metav1.GetOptions{}); err != nil {
			t.Errorf("the token from outside: %v", err)
		}
		s.kubectl("delete", "pod", "robot")
		s.eventually(30*time.Second, "the token is void", func() (bool, string) {
			_, err := c.CoreV1().Pods(s.ns).Get(s.ctx, "robot", metav1.GetOptions{})
			return apierrors.IsUnauthorized(err), err.Error()
		})
		// kubectl create token works, and carries its audience.
		made := strings.TrimSpace(s.kubectl("create", "token", "robot", "--audience", "someone", "--duration", "10m"))
		review, err := cluster.Client.AuthenticationV1().TokenReviews().Create(s.ctx,
			&authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: made, Audiences: []string{"someone"}}}, metav1.CreateOptions{})
		if err != nil || !review.Status.Authenticated || review.Status.User.Username != "system:serviceaccount:"+s.ns+":robot" {
			t.Errorf("review of a made token: %+v, %v", review, err)
		}
	})

	t.Run("a kubelet keeps to its own node", func(t *testing.T) {
		s := s.sub(t)
		cfg, err := clientcmd.BuildConfigFromFlags("", cluster.Nodes[1].Path("etc/keelson/kubelet.conf"))
		if err != nil {
			t.Fatal(err)
		}
		kubelet, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.kubectl("create", "secret", "generic", "one", "--from-literal=a=b")
		s.kubectl("create", "secret", "generic", "two", "--from-literal=a=b")
		for node, secret := range map[string]string{"node-1": "one", "node-2": "two"} {
			s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: on-` + node + `}
spec: {nodeSelector: {kubernetes.io/hostname: ` + node + `}, terminationGracePeriodSeconds: 1, volumes: [{name: s, secret: {secretName: ` + secret + `}}],
  containers: [{name: c, image: $TEST, args: [sleep], volumeMounts: [{name: s, mountPath: /s}]}]}
`)
			s.becomes(30*time.Second, "Running", "get", "pod", "on-"+node, "-o", "jsonpath={.status.phase}")
		}
		forbidden := func(what string, err error) {
			t.Helper()
			if !apierrors.IsForbidden(err) {
				t.Errorf("node-2's kubelet %s: %v; want forbidden", what, err)
			}
		}
		if _, err := kubelet.CoreV1().Secrets(s.ns).Get(s.ctx, "two", metav1.GetOptions{}); err != nil {
			t.Errorf("node-2's kubelet reads the secret of its pod: %v", err)
		}
		_, err = kubelet.CoreV1().Secrets(s.ns).Get(s.ctx, "one", metav1.GetOptions{})
		forbidden("reads the secret of another node's pod", err)
		_, err = kubelet.CoreV1().Secrets(s.ns).List(s.ctx, metav1.ListOptions{})
		forbidden("lists secrets", err)
		forbidden("deletes another node's pod", kubelet.CoreV1().Pods(s.ns).Delete(s.ctx, "on-node-1", metav1.DeleteOptions{}))
		other := s.pod("on-node-1")
		other.Status.Message = "taken over"
		_, err = kubelet.CoreV1().Pods(s.ns).UpdateStatus(s.ctx, other, metav1.UpdateOptions{})
		forbidden("writes the status of another node's pod", err)
		node, err := cluster.Client.CoreV1().Nodes().Get(s.ctx, "node-1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		node.Status.Conditions = nil
		_, err = kubelet.CoreV1().Nodes().UpdateStatus(s.ctx, node, metav1.UpdateOptions{})
		forbidden("writes the status of another node", err)
		_, err = kubelet.CoreV1().Pods(s.ns).Create(s.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "smuggled"},
			Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "c", Image: "x"}}}}, metav1.CreateOptions{})
		forbidden("creates an ordinary pod", err)
	})

	t.Run("no certificate, no entry", func(t *testing.T) {
		s := s.sub(t)
		anonymous, err := kubernetes.NewForConfig(rest.AnonymousClientConfig(cluster.Config))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := anonymous.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
			t.Errorf("an anonymous list of pods: %v", err)
		}
		if _, err := anonymous.Discovery().ServerVersion(); err != nil {
			t.Errorf("an anonymous look at /version: %v", err)
		}
		bad := rest.AnonymousClientConfig(cluster.Config)
		bad.BearerToken = "garbage"
		c, err := kubernetes.NewForConfig(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
			t.Errorf("a garbage token: %v; want 401", err)
		}
		// The kubelet's port asks as well.
		out, err := cluster.Nodes[0].Exec(s.ctx, program, "get", "https://"+cluster.Nodes[1].Address+":10250/pods")
		if err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("the kubelet's pods without a certificate: %q %v", out, err)
		}
	})
}
